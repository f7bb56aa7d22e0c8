"""Serves the accepted models with the Open Inference Protocol: catalogue, traffic, runtime, protocol, server."""
