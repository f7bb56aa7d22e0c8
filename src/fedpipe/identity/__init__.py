"""Identities: signing keys, enrolment, and the policies of the store."""
