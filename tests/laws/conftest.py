"""Lets the laws import ``tests/strategies.py``, and builds what most of them start from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
