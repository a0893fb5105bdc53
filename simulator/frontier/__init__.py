"""The hit rate of every cache size at once."""
