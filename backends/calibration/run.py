"""One calibration from beginning to end: bench, probes in turn, fits, two profiles and a record."""

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesim.backends.calibration import copies, cpu_experts, decisions, fingerprint, works
from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.cuda_bench import CudaBench
from moesim.backends.calibration.eager import HF_EAGER, eager
from moesim.backends.calibration.fitting import Check
from moesim.backends.calibration.sampling import Samples, interleave, summarise
from moesim.backends.calibration.sheet import Provenance, Sheet
from moesim.backends.calibration.software import Software
from moesim.backends.calibration.threads_bench import ThreadsBench
from moesim.traces.store import read

SAMPLE = "twin-olmoe-16x64.npz"
_PIN_SHARE = 0.05
_GUESS = "50%"
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
    mode: str | None = None,
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
        mode: ``hf-eager`` measures transformers' own modules, without graphs; None the backend's
            own runtime.
        on_round: Called with the share of the time that is over.
    """
    with ExitStack() as held:
        held.callback(bench.close)
        before = fingerprint.clocks(bench.place)
        driver = fingerprint.driver(bench.place)
        cores = fingerprint.cpu_expert_cores()
        in_ram = works.Weights(torch.device("cpu"), bench.dtype, bench.scale.cold_bytes)
        workers = cpu_experts.CpuExperts(bench, in_ram, cores)
        held.callback(workers.close)
        software = bench.software()
        if mode == HF_EAGER:
            software = eager(software, bench.place)
        held.callback(software.close)
        replays, refused = decisions.replays(read(_sample_file()).head(requests=1), systems)
        probes = [
            *copies.probes(bench),
            *software.probes(),
            *workers.probes(),
            *decisions.probes(replays),
            *copies.idle_probes(bench, software.kernel),
        ]
        samples = interleave(probes, seconds, on_round=on_round)
        after = fingerprint.clocks(bench.place)
        date = dt.datetime.now(dt.UTC).date().isoformat()
        provenance = Provenance(command, date, driver)
        machine_sheet, runtime_sheet = Sheet(samples, provenance), Sheet(samples, provenance)
        machine = _machine(bench, machine_sheet, software, workers)
        runtime = _runtime(runtime_sheet, software, workers)
        runtime["decisions"] = decisions.decisions(
            replays, runtime_sheet, software.cold_ns(runtime_sheet)
        )
        pinned, is_more = bench.pinned_bytes(seconds * _PIN_SHARE)
        _memory(bench, machine, machine_sheet, runtime, runtime_sheet)
        software.complete({**machine, "sources": machine_sheet.sources}, runtime, runtime_sheet)
    beside = machine_sheet.median("copy h2d not beside") / machine_sheet.median(
        "copy h2d beside d2h"
    )
    return Calibration(
        machine=_head(name, _title(bench), machine_sheet) | machine,
        runtime=_head(name, f"moesim's {bench.place.type} backend, {software.words}", runtime_sheet)
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
            "cores": fingerprint.assigned_cores(),
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
    bench: Bench, sheet: Sheet, software: Software, workers: cpu_experts.CpuExperts
) -> dict[str, Any]:
    """Return the sections of a hardware profile, but for the size of VRAM."""
    place = bench.place
    found = fingerprint.fingerprint(place)
    size = sheet.read_off("sizes", "as driver and system report them")
    rates = software.gpu(sheet)
    processor = workers.host(sheet)
    link = copies.link(bench, sheet, fingerprint.connection(place))
    return {
        "gpu": {"name": found.gpu, **rates},
        "link": link,
        "host": {
            "cpu": found.cpu,
            "cores": str(fingerprint.cores()),
            "ram": [format_exact(fingerprint.ram_bytes()), size],
            "dram_bandwidth": copies.most_read(link, processor["expert_bandwidth"]),
            **processor,
        },
        "fingerprint": found.model_dump(),
    }


def _runtime(sheet: Sheet, software: Software, workers: cpu_experts.CpuExperts) -> dict[str, Any]:
    """Return the sections of a runtime profile, but for decisions and memory."""
    return {**software.sections(sheet), "cpu_experts": workers.runtime(sheet)}


def _memory(
    bench: Bench,
    machine: dict[str, Any],
    machine_sheet: Sheet,
    runtime: dict[str, Any],
    runtime_sheet: Sheet,
) -> None:
    """Say how much VRAM there is, can be used, and is kept by the software."""
    total, usable, workspace_bytes = bench.vram()
    share = (
        machine_sheet.read_off("usable", "blocks of 256 MiB allocated until one was refused")
        if bench.place.type == "cuda"
        else machine_sheet.estimate("usable", "half of the RAM stands for VRAM", _GUESS)
    )
    machine["gpu"] |= {
        "vram": [format_exact(total), "sizes"],
        "vram_usable": [write.share(usable / total), share],
    }
    if workspace_bytes:
        room = runtime_sheet.read_off("workspace", "what torch kept beyond its tensors")
    else:
        workspace_bytes = _WORKSPACE_BYTES
        room = runtime_sheet.estimate("workspace", "activations of a small model", _GUESS)
    runtime["memory"] = {"workspace": [format_exact(workspace_bytes), room]}


def format_exact(nbytes: int) -> str:
    """Return a size in MiB, or in bytes where it is no whole number of them.

    >>> format_exact(3 * 2**20), format_exact(5)
    ('3MiB', '5B')
    """
    mib, rest = divmod(nbytes, 1024 * 1024)
    return f"{nbytes}B" if rest else f"{mib}MiB"
