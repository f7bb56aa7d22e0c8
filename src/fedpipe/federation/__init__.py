"""The federation file: its types and its grammar."""
