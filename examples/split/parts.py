"""The parts of the network: each hospital turns its columns into 8 numbers, the registry these into a diagnosis."""

import keras

COLUMNS = {"imaging": 4, "pathology": 6}


def bottom(party: str) -> keras.Model:
    """Return the part of a hospital, which normalises its own columns."""
    model = keras.Sequential(
        [
            keras.Input((COLUMNS[party],)),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(8, activation="tanh"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    return model


def top() -> keras.Model:
    """Return the part of the registry, with an input for each hospital."""
    inputs = [keras.Input((8,), name=party) for party in COLUMNS]
    hidden = keras.layers.Dense(8, activation="relu")(keras.layers.Concatenate()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="malignant")(hidden))
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="binary_crossentropy", metrics=["accuracy"])
    return model
