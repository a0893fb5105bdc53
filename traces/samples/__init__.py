"""Small recorded traces that ship with the package."""
