"""All that imports TensorFlow Federated: simulation of a federation on one machine. Runs in the tff environment."""
