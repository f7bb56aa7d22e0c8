"""The version of fedpipe."""

__version__ = "0.1.0"
