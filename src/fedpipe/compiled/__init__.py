"""Compiles a federation to a pipeline file, without a cluster."""
