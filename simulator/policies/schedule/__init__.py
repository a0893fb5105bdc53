"""Schedule policies: where experts run, and in which order."""
