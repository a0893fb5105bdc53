"""Recorded traces that ship with the package; each says in its header where it comes from."""
