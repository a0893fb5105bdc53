r"""Experts that live on two GPUs, executed in eager mode beside one GPU, decisions compared.

``python benchmarks/spread_experts.py -o spread_experts.json`` needs two GPUs of one host. Room for
a quarter of the experts on one, then the same room divided between two, then that room on each;
each expert runs on its home and activations cross. Decisions must be the replay's, one by one.
Times are those of modules of transformers launched one by one, which repeat themselves badly; what
is foretold of them (``hf-eager``, measured on another day) stands beside and is no claim. Without a
GPU it runs on the CPU, which shows that it runs:

    python benchmarks/spread_experts.py --model backends/reference/weights --weights checkpoint \
        --trace traces/samples/reference-12x32.npz --requests 1 --repeats 1 --warm 5
"""

import sys
from dataclasses import replace
from time import monotonic

import torch
from gpu_figures import take_profiles, with_links
from two_gpus import Clocked, compared, executed, foretold, open_rig, options, provenance, write

from moesim.backends.drivers.cuda.gpus_driver import GpusCudaDriver
from moesim.backends.drivers.threads_gpus import GpusThreadsDriver


def main() -> None:
    """Foretell, execute, write."""
    parser = options(__doc__)
    parser.set_defaults(runtime="hf-eager", repeats=2)
    given = parser.parse_args()
    began_s = monotonic()
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        sys.exit(f"spread_experts needs two GPUs; there are {torch.cuda.device_count()}")
    rig = open_rig(given)
    take_profiles(rig, given, None)
    is_gpu = rig.device.type == "cuda"
    rig.subject.make_driver = Clocked(GpusCudaDriver if is_gpu else GpusThreadsDriver)
    profiles = with_links(rig.known, rig.size, peer_each_ns=None if is_gpu else 10.0)
    one = rig.deciding(given.share)
    cells = {
        "one GPU": one,
        "the same room on two GPUs": replace(one, gpus=2),
        "that room on each of two": replace(rig.deciding(2 * given.share), gpus=2),
    }
    executed(rig, cells["one GPU"], given.warm)  # clocks are up and kernels loaded
    rows = {}
    for name, deciding in cells.items():
        prediction = foretold(rig, deciding, profiles, given.warm)
        done = [executed(rig, deciding, given.warm) for _ in range(given.repeats)]
        rows[name] = compared(prediction, done)
        print(
            f"{monotonic() - began_s:6.1f} s  {name}: TPOT "
            f"{rows[name]['median_tpot_ms']['mean']:.3f} ms (spread {rows[name]['spread']:.1%}), "
            f"foretold {prediction.tpot_ms['mean']:.3f}; "
            f"{rows[name]['decisions']['differing']} of {rows[name]['decisions']['events']} events "
            "decided otherwise",
            flush=True,
        )
    write(given.output, {"provenance": provenance(rig, given), "cells": rows})
    if any(row["decisions"]["differing"] for row in rows.values()):
        sys.exit("decisions are not the replay's")


if __name__ == "__main__":
    main()
