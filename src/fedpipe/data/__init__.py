"""Examples: read from files, dealt out, kept as shards, explored."""
