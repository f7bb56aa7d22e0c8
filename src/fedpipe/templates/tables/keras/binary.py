"""The model that all learners train. The store distributes this file, so changing it needs no new image."""

import keras

from fedpipe.learners.keras.table import Table


def build(table: Table) -> keras.Model:
    """Return a small network that tells two classes apart.

    table.encoded has all columns as numbers: normalised, missing values filled in, categories as one column a value.
    """
    x = keras.layers.Dense(32, activation="relu")(table.encoded)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(1, activation="sigmoid", name="probability")(x)
    model = keras.Model(table.inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss="binary_crossentropy",
        metrics=["accuracy", keras.metrics.AUC(name="auc")],
    )
    return model
