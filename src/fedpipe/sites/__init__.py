"""Sites: learners outside the cluster, which decide for themselves what runs on their data."""
