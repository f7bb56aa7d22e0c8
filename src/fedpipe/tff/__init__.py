"""Simulates and aggregates with TensorFlow Federated; the only room that imports it, in the tff environment."""
