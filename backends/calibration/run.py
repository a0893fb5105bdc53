"""One calibration from beginning to end: bench, probes in turn, fits, two profiles and a record."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesim.backends.calibration import copies, cpu_experts, decisions, fingerprint, host, works
from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.compute import Kernels
from moesim.backends.calibration.cuda_bench import CudaBench
from moesim.backends.calibration.fitting import Check
from moesim.backends.calibration.sampling import Samples, interleave, summarise
from moesim.backends.calibration.sheet import Provenance, Sheet
from moesim.backends.calibration.threads_bench import ThreadsBench
from moesim.traces.store import read

SAMPLE = "twin-olmoe-16x64.npz"
_PIN_SHARE = 0.05
_GUESS = "50%"
_SPARE_CORES = 2
_WORKSPACE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration found.

    Attributes:
        machine: The hardware profile, as its YAML has it.
        runtime: The runtime profile, likewise.
        samples: All samples by probe.
        checks: Points held out of the fits, with their errors.
        notes: What no profile has a key for, by name.
    """

    machine: dict[str, Any]
    runtime: dict[str, Any]
    samples: Samples
    checks: list[Check]
    notes: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return everything measured, for a JSON file."""
        return {
            "notes": self.notes,
            "held_out": [
                {
                    "point": c.name,
                    "predicted": c.predicted,
                    "measured": c.measured,
                    "error": c.error,
                }
                for c in self.checks
            ],
            "probes": {
                name: {"median": s.median, "spread": s.spread, "samples": s.samples}
                for name, s in ((name, summarise(values)) for name, values in self.samples.items())
            },
        }


def make_bench(backend: str) -> Bench:
    """Return the bench of a backend, ``cpu`` or ``cuda``."""
    return CudaBench() if backend == "cuda" else ThreadsBench()


@torch.inference_mode()
def calibrate(
    bench: Bench,
    *,
    name: str,
    seconds: float,
    command: str,
    systems: Sequence[str] | None = None,
    on_round: Callable[[float], None] | None = None,
) -> Calibration:
    """Measure a machine and return its profiles; the bench is closed after.

    Args:
        bench: The device.
        name: Of both profiles unless their files are called otherwise.
        seconds: How long samples are taken; setting up comes on top.
        systems: Whose decisions are timed; all by default.
        command: Stands in the evidence of each figure.
        on_round: Called with the share of the time that is over.
    """
    before = fingerprint.clocks(bench.place)
    driver = fingerprint.driver(bench.place)
    cores = max(1, fingerprint.cores() - _SPARE_CORES)
    in_ram = works.Weights(torch.device("cpu"), bench.dtype, bench.scale.cold_bytes)
    workers = cpu_experts.CpuExperts(bench, in_ram, cores)
    try:
        kernels = Kernels(bench)
        replays, refused = decisions.replays(read(_sample_file()).head(requests=1), systems)
        probes = [
            *copies.probes(bench),
            *kernels.probes(),
            *workers.probes(),
            *bench.host_probes(kernels.layer, kernels.run, kernels.run_of_one),
            *decisions.probes(replays),
            *copies.idle_probes(bench, kernels.layer),
        ]
        samples = interleave(probes, seconds, on_round=on_round)
        after = fingerprint.clocks(bench.place)
        pinned, is_more = bench.pinned_bytes(seconds * _PIN_SHARE)
        memory = bench.vram()
    finally:
        workers.close()
        bench.close()
    place = bench.place
    date = dt.datetime.now(dt.UTC).date().isoformat()
    provenance = Provenance(command, date, driver)
    machine_sheet, runtime_sheet = Sheet(samples, provenance), Sheet(samples, provenance)
    machine = _machine(bench, machine_sheet, kernels, workers, memory)
    runtime = _runtime(bench, runtime_sheet, kernels, workers, memory[2])
    runtime["decisions"] = decisions.decisions(replays, runtime_sheet)
    beside = machine_sheet.median("copy h2d not beside") / machine_sheet.median(
        "copy h2d beside d2h"
    )
    return Calibration(
        machine=_head(name, _title(bench), machine_sheet) | machine,
        runtime=_head(name, f"moesim's {place.type} backend, {bench.kernels}", runtime_sheet)
        | runtime,
        samples=samples,
        checks=[*machine_sheet.checks, *runtime_sheet.checks],
        notes={
            "clocks_before": before,
            "clocks_after": after,
            "pinned_bytes": pinned,
            "pinned_could_be_more": is_more,
            "h2d_rate_left_beside_d2h": beside,
            "systems_not_replayed": refused,
            "cores_for_cpu_experts": cores,
            "command": command,
            "date": date,
            "driver": driver,
        },
    )


def _sample_file() -> Path:
    from moesim.traces import samples  # noqa: PLC0415  a package of data

    return Path(samples.__file__).parent / SAMPLE


def _head(name: str, title: str, sheet: Sheet) -> dict[str, Any]:
    return {"schema": "1", "name": name, "title": title, "sources": sheet.sources}


def _title(bench: Bench) -> str:
    found = fingerprint.fingerprint(bench.place)
    what = found.gpu if bench.place.type == "cuda" else "no GPU, memory copies stand for the link's"
    return f"{found.cpu}, {fingerprint.cores()} cores, {what}; calibrated"


def _machine(
    bench: Bench,
    sheet: Sheet,
    kernels: Kernels,
    workers: cpu_experts.CpuExperts,
    memory: tuple[int, int, int],
) -> dict[str, Any]:
    """Return the sections of a hardware profile."""
    place = bench.place
    found = fingerprint.fingerprint(place)
    total, usable, _ = memory
    is_gpu = place.type == "cuda"
    size = sheet.read_off("sizes", "as driver and system report them")
    share = (
        sheet.read_off("usable", "blocks of 256 MiB allocated until one was refused")
        if is_gpu
        else sheet.estimate("usable", "half of the RAM stands for VRAM", _GUESS)
    )
    rates = kernels.gpu(sheet)
    processor = workers.host(sheet)
    return {
        "gpu": {
            "name": found.gpu,
            "vram": [format_exact(total), size],
            "vram_usable": [write.share(usable / total), share],
            **rates,
        },
        "link": copies.link(bench, sheet, fingerprint.connection(place)),
        "host": {
            "cpu": found.cpu,
            "cores": str(fingerprint.cores()),
            "ram": [format_exact(fingerprint.ram_bytes()), size],
            "dram_bandwidth": processor["expert_bandwidth"],
            **processor,
        },
        "fingerprint": found.model_dump(),
    }


def _runtime(
    bench: Bench,
    sheet: Sheet,
    kernels: Kernels,
    workers: cpu_experts.CpuExperts,
    workspace_bytes: int,
) -> dict[str, Any]:
    """Return the sections of a runtime profile, but for decisions."""
    if workspace_bytes:
        room = sheet.read_off("workspace", "what torch kept beyond its tensors, graphs captured")
    else:
        workspace_bytes = _WORKSPACE_BYTES
        room = sheet.estimate("workspace", "activations of a small model", _GUESS)
    return {
        "launch": host.launch(sheet, bench.scale.experts[1].experts),
        "wait": host.wait(sheet),
        "copying": host.copying(sheet),
        "kernels": kernels.kernels(sheet),
        "cpu_experts": workers.runtime(sheet),
        "memory": {"workspace": [format_exact(workspace_bytes), room]},
    }


def format_exact(nbytes: int) -> str:
    """Return a size in MiB, or in bytes where it is no whole number of them.

    >>> format_exact(3 * 2**20), format_exact(5)
    ('3MiB', '5B')
    """
    mib, rest = divmod(nbytes, 1024 * 1024)
    return f"{nbytes}B" if rest else f"{mib}MiB"
