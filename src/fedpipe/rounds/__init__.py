"""Rounds: what a round is, how it is written down, decided and committed."""
