"""The model that all learners train. The store distributes this file, so changing it needs no new image."""

import keras

from fedpipe.learners.keras.table import Table


def build(table: Table) -> keras.Model:
    """Return a small network that predicts a number.

    table.encoded has all columns as numbers: normalised, missing values filled in, categories as one column a value.
    """
    x = keras.layers.Dense(32, activation="relu")(table.encoded)
    x = keras.layers.Dropout(0.2)(x)
    x = keras.layers.Dense(1)(x)
    outputs = keras.layers.Rescaling(table.target_deviation, table.target_mean, name="prediction")(x)
    model = keras.Model(table.inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss="mean_squared_error",
        metrics=["mean_absolute_error"],
    )
    return model
