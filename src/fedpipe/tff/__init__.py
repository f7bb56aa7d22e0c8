"""All that imports TensorFlow Federated: aggregation, and simulation on one machine. Runs in the tff environment."""
