"""Reports on runs and data, as pages, plots and tables."""
