"""The parts of the network: each party builds its own. All parties have this file, and none has the rows of another."""

import keras


def bottom(party: str) -> keras.Model:
    """Return the part of a party with features: 8 x 8 images become 64 numbers."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(2e-3))
    return model


def top() -> keras.Model:
    """Return the part of the label party: 64 numbers become 10 digits."""
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax", name="digit")])
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
