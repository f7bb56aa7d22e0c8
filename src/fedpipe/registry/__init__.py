"""Published models: export, signature, card, prediction."""
