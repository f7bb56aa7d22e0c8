"""Sessions: learners and a coordinator that meet at the store."""
