"""From the log of somebody's own engine to the profiles that explain its times."""
