"""Finds what keeps a federation from running on a cluster; changes nothing."""
