"""The aggregation rules, one file each."""
