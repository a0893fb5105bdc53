"""``make demo``: the main job on the trace that ships, at a tight budget.

The trace was recorded from a small model that this project trained; the costs are those of
Mixtral-8x7B in int4 on an RTX 4090, which the tables say. Nothing is downloaded.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRACE = Path("traces/samples/reference-12x32.npz")
OUT = Path("demo")

RUNS = (
    ("mixtral-offloading", ["--plot", str(OUT / "mixtral-offloading.png")]),
    ("on-demand", []),
)


def main() -> int:
    """Replay the trace under two systems and say where the files are."""
    os.chdir(ROOT)
    OUT.mkdir(exist_ok=True)
    csv = OUT / "results.csv"
    csv.unlink(missing_ok=True)
    for system, extra in RUNS:
        command = [
            *(Path(sys.executable).parent / "moesim", "simulate", TRACE, "--hardware", "rtx4090"),
            *("--system", system, "--slots", "25%"),
            *("--cost-of", "mixtral-8x7b", "--format", "int4"),
            *("--csv", csv, "--timeline", OUT / f"{system}.trace.json.gz"),
            *extra,
        ]
        words = [str(word) for word in command]
        print("$ moesim", *words[1:])
        done = subprocess.run(words, check=False)
        if done.returncode:
            return done.returncode
        print()
    print(f"rows: {csv}; timelines for ui.perfetto.dev and a plot: {OUT}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
