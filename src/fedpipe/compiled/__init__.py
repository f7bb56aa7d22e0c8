"""From a federation to a pipeline file; needs no cluster."""
