"""A plug-in with one policy."""
