"""What learners do: train, vote, score; one adapter per framework."""
