"""The Keras adapter."""
