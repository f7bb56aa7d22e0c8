"""Reads examples from files, deals them out, stores them as shards, and explores them."""
