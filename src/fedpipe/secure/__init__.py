"""Secure sums: the protocol itself, without a store and without a clock (docs/secure-sums.md)."""
