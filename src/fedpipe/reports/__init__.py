"""What a run did, as pages, plots and tables."""
