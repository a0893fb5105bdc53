"""How long ``moesim sweep`` takes for 1,000 configurations, wall and CPU, beside what it ought to.

    python benchmarks/sweep_speed.py [--tokens 10000] [--jobs 2] [--folder FOLDER]

5 caches x 20 sizes x 5 machines x 2 schedules on one synthetic 24x32 top-4 trace, by the compiled
engine; every row has its bounds and its band. Beside others on the machine the wall time is theirs
too: CPU seconds over processes is what it would be alone, so both are printed, with the load.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moesim.traces import synthetic, write

MOST_S = 120
GRID = {
    "cache": ["lru", "fifo", "lfu", "lcp", "belady"],
    "slots": [f"{percent}%" for percent in range(15, 95, 4)],
    "hardware": ["rtx4090", "rtx3090", "l40s", "a100-40gb", "h100-sxm"],
    "schedule": ["resident_first", "on_demand"],
}


def write_sweep(folder: Path, tokens: int) -> Path:
    """Write the trace and the sweep; return the sweep's file."""
    trace = synthetic.sticky(
        seed=0,
        reuse=0.3,
        layers=24,
        experts=32,
        top_k=4,
        requests=8,
        prompt_tokens=0,
        decode_tokens=tokens // 8,
    )
    write(trace, folder / "trace.safetensors")
    base = {"trace": "trace.safetensors", "engine": "compiled", "model": "gpt-oss-20b"}
    path = folder / "sweep.yaml"
    path.write_text(json.dumps({"base": base, "grid": GRID}), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=10_000, help="of the trace")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--folder", type=Path, help="where the sweep and its rows are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = options.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        sweep, output = write_sweep(folder, options.tokens), folder / "results.csv"
        output.unlink(missing_ok=True)
        command = (sys.executable, "-m", "moesim.simulator.cli", "sweep", str(sweep))
        load = os.getloadavg()[0]
        began = time.perf_counter()
        subprocess.run((*command, "-o", str(output), "--jobs", str(options.jobs)), check=True)
        wall_s = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        with output.open(encoding="utf-8", newline="") as rows:
            done = len(list(csv.DictReader(rows)))
    cpu_s = used.ru_utime + used.ru_stime
    print(
        f"{done:,} configurations of {options.tokens:,} tokens, {options.jobs} processes: "
        f"{wall_s:.0f} s wall, {cpu_s:.0f} s CPU, {cpu_s / options.jobs:.0f} s for each process "
        f"(target {MOST_S}); load {load:.1f} before, {os.getloadavg()[0]:.1f} after, "
        f"{os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    main()
