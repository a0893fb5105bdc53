"""Requests that arrive: when, how long, whose routing they use, and what memory lets in."""
