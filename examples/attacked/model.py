from fedpipe.learners.numpy import Linear


def build() -> Linear:
    """Return softmax regression on 8 x 8 images of handwritten digits."""
    return Linear(features=(8, 8, 1), outputs=10, loss="softmax", learning_rate=0.1)
