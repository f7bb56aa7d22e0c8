"""Publishes models and predicts with them: export, publication, card, prediction."""
