"""Cache policies: what stays in VRAM."""
