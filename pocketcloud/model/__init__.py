"""Frozen values: what is wanted, what is there, what the host is. No I/O and no import of ours."""
