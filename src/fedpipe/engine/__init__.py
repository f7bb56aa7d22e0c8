"""Runs compiled pipelines on this machine."""
