"""The work of learners: train, vote, score; one adapter per framework."""
