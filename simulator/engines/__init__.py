"""Engines of virtual time: one host program and one machine, and how time passes in each."""
