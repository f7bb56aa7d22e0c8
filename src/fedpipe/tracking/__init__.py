"""Sends a run's curves to a tracking server, and its model to a model registry; neither may hold up a run."""
