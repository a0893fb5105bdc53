"""Triton kernels for experts in VRAM. Nothing here is imported where there is no Triton.

A launch reads experts at byte offsets of one arena, so a slot may lie anywhere, and writes each
(token, expert) product into a row of its own; `merge.merge_rows` adds them in router order. So
sums depend neither on what arrived first nor on what else was in the launch.
"""
