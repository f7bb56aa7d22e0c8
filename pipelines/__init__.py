"""The wiring: each pipeline reads like its algorithm."""
