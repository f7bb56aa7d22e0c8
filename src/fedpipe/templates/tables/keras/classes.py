"""The model that all learners train. The store distributes this file, so changing it needs no new image."""

import keras

from fedpipe.learners.keras.table import Table


def build(table: Table) -> keras.Model:
    """Return a small network that tells the classes apart.

    table.encoded has all columns as numbers: normalised, missing values filled in, categories as one column a value.
    """
    x = keras.layers.Dense(32, activation="relu")(table.encoded)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(len(table.classes), activation="softmax", name="probabilities")(x)
    model = keras.Model(table.inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model
