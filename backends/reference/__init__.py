"""The reference model: a small MoE that has learned, and the recipe that made it.

Run in this order: ``gather`` (texts out of Debian packages), ``train`` (texts to weights and
their report), ``prompts`` (held-out texts to a prompts file for ``moesim record``).
"""
