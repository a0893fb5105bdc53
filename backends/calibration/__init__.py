"""Measures a machine and what our software costs on it, and writes both as profiles."""
