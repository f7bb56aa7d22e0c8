"""The command as a user of a site types it."""

from tests.cli.conftest import fedpipe

__all__ = ["fedpipe"]
