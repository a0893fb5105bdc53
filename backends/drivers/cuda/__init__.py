"""The CUDA driver: a VRAM arena, a pinned store, one copy stream, and what they need."""
