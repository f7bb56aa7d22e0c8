"""The local engine: runs compiled pipelines on this machine."""
