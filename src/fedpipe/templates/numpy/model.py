"""The model that the federation trains: logistic regression for pictures of 8 x 8 numbers."""

from fedpipe.learners.numpy import Linear


def build() -> Linear:
    """Return the model; fedpipe trains it by gradient descent."""
    return Linear(features=(8, 8, 1), outputs=10, loss="softmax", learning_rate=0.5)
