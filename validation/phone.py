"""A machine that is not ours: BigMoeOnEdge's phone, from its own log, one half from the other.

``python -m moesim.validation.phone FOLDER OUT`` takes the recorded trace's folder, with the
device's logs below it, and writes the evidence: the fitted profiles, the errors of every split with
every token, what two passes of the device itself agree on, and what the constants say of its other
logs, whose routes are not recorded.
"""

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware_profiles.writing import write_machine, write_runtime
from moesim.simulator.commands.from_log import Engine, record, rounded, run_of
from moesim.simulator.fitting.engine_log import EngineLog, read_log
from moesim.simulator.fitting.fitted_profile import Constants
from moesim.simulator.fitting.log_fit import STUMBLE, LogFit, fit_log
from moesim.simulator.results.rows import write_text
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.validation.provenance import without_folder
from moesim.validation.statistics import spread

# N decode steps.

LOG = "qwen.metrics"
ENGINE = Engine(cache="lru", expert_budget="4000MiB")
SPLITS = ("first", "second", "even")
PASSES = ("qwen-lru_a.csv", "qwen-lru_b.csv")
OTHERS = (*PASSES, "qwen-lfu_a.csv", "qwen-lfu_b.csv")
PROMPT_S = "prefill_s"


def evidence(data: Path, out: Path) -> dict[str, Any]:
    """Write profiles and evidence to a folder and return the evidence.

    Args:
        data: Folder of the trace; the logs are in ``device`` below it.
        out: Where to; made if absent.
    """
    out.mkdir(parents=True, exist_ok=True)
    spec, device = run_of(data, ENGINE), data / "device"
    log = read_log(device / LOG)
    fits = {split: fit_log(spec, log, fit=split) for split in SPLITS}
    claim = fits[SPLITS[0]]
    machine, runtime = out / "bigmoe-phone.yaml", out / "bigmoe-phone-runtime.yaml"
    write_machine(claim.machine, machine)
    write_runtime(claim.runtime, runtime)
    found = {
        "what": "one half of the phone's own log fitted, the other predicted by replay",
        "moesim": version("moesim"),
        "command": command_of(data, out),
        "trace_hash": spec.trace.content_hash(),
        "policies": dict(spec.policies),
        "expert_budget": ENGINE.expert_budget,
        "claim": SPLITS[0],
        "splits": {split: record(log, fit) for split, fit in fits.items()},
        "noise": _noise([read_log(device / name) for name in PASSES]),
        "other_logs": [_other(read_log(device / name), claim.constants) for name in OTHERS],
        "prompt": _prompt(spec, claim, device / LOG, machine, runtime),
    }
    write_text(out / "fit.json", _to_text(found))
    return found


def _noise(passes: list[EngineLog]) -> dict[str, Any]:
    """Say how far two passes agree that read the same bytes at every token."""
    one, other = (log.time_ns_N for log in passes)
    read = [log.read_bytes_N for log in passes if log.read_bytes_N is not None]
    is_same = len(read) == len(passes) and all(np.array_equal(read[0], each) for each in read)
    return {
        "logs": [_named(log) for log in passes],
        "same_bytes_at_every_token": is_same,
        **rounded(
            {
                "spread_of_mean": spread([float(one.mean()), float(other.mean())]),
                "spread_of_p99": spread([_p99(one), _p99(other)]),
                "correlation": float(np.corrcoef(one, other)[0, 1]),
            }
        ),
    }


def _other(log: EngineLog, constants: Constants) -> dict[str, Any]:
    """Say what the constants, not refitted, make of another log's own bytes."""
    assert log.read_bytes_N is not None
    bare_N = constants.fixed_ns + constants.byte_ns * log.read_bytes_N
    predicted_N = bare_N + constants.disturbance_ns
    is_calm_N = log.time_ns_N < STUMBLE * bare_N
    calm_N = log.time_ns_N[is_calm_N]
    return {
        **_named(log),
        **rounded(
            {
                "mean": float(predicted_N.mean() / log.time_ns_N.mean() - 1),
                "disturbed": float(1 - is_calm_N.mean()),
                "undisturbed_mean": float(bare_N[is_calm_N].mean() / calm_N.mean() - 1),
                "undisturbed_correlation": float(np.corrcoef(bare_N[is_calm_N], calm_N)[0, 1]),
            }
        ),
    }


def _prompt(
    spec: RunSpec, fit: LogFit, log: Path, machine: Path, runtime: Path
) -> dict[str, float | None]:
    """Compare the time of the prompt, of which nothing was fitted."""
    run = RunSpec(
        spec.trace, spec.trace_name, str(machine), spec.policies, str(runtime), memory=spec.memory
    )
    replayed_ns = prepare(run).replay().tokens.first_ns[0] - fit.constants.disturbance_ns
    summary = next(line for line in log.read_text().splitlines() if PROMPT_S in line)
    measured_s = float(summary.partition(f"{PROMPT_S}=")[2].split()[0])
    return rounded(
        {
            "replayed_s": replayed_ns / 1e9,
            "measured_s": measured_s,
            "error": replayed_ns / 1e9 / measured_s - 1,
        }
    )


def _named(log: EngineLog) -> dict[str, Any]:
    return {"name": log.name, "sha256": log.sha256, "tokens": len(log.time_ns_N)}


def _p99(time_N: NDArray[np.float64]) -> float:
    return float(np.percentile(time_N, 99))


def _to_text(found: dict[str, Any]) -> str:
    """Return JSON, a line for each key of the outermost object and for each split and log."""
    lines = []
    for key, value in found.items():
        if isinstance(value, dict) and key == "splits":
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        elif isinstance(value, list):
            inner = ",\n".join(f"  {json.dumps(one)}" for one in value)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def command_of(data: Path, out: Path) -> str:
    """Return the command that makes the evidence, without the folders of this machine."""
    folders = (without_folder(str(path)) for path in (data, out))
    return " ".join(["python -m moesim.validation.phone", *folders])


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and write the evidence."""
    parser = argparse.ArgumentParser(description="Fit the phone's log and judge the fit.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the trace, logs below it")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the evidence")
    given = parser.parse_args(words)
    evidence(given.folder, given.out)


if __name__ == "__main__":
    main()
