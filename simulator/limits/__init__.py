"""What no policy can beat, and what parts a run from it."""
