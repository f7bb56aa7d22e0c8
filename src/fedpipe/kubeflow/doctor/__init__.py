"""Finds problems that keep a federation from running on a cluster; changes nothing."""
