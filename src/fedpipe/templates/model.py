"""The model that all learners train. The store distributes this file, so changing it needs no new image."""

import keras


def build() -> keras.Model:
    """Return a small network for 8 x 8 images of handwritten digits."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


# def load(uri):
#     """Reads a learner's own data (`learners[].data`): returns (x, y), a tf.data.Dataset, or a table of
#     the parts {"train": ..., "vote": ..., "test": ...}. Without it, .npz and .parquet files are read."""
