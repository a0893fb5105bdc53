"""The graphs' figures, from samples whose law is known; sessions are replayed, never served."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesim.backends.calibration import decisions as decided
from moesim.backends.calibration import graph_points as points
from moesim.backends.calibration import graph_software as graphs
from moesim.backends.calibration.driver_host import DriverHost
from moesim.backends.calibration.fitting import Check
from moesim.backends.calibration.graph_figures import GraphFigures
from moesim.backends.calibration.leftover import Rest
from moesim.backends.calibration.pieces import LOOKING
from moesim.backends.calibration.rates import PRODUCT, READ, Rates, alone, beside
from moesim.backends.calibration.run import SAMPLE
from moesim.backends.calibration.scale import CUDA
from moesim.backends.calibration.sheet import Provenance, Sheet
from moesim.backends.calibration.token_fit import unfinished
from moesim.backends.calibration.whole_tokens import Lengths, Session
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.hardware_profiles import load as load_machine
from moesim.hardware_profiles.catalogue import FOLDER
from moesim.hardware_profiles.files import read_tree, validated
from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.units import parse_ns
from moesim.simulator.models import load
from moesim.traces import load as load_trace
from moesim.traces import samples

BYTES_PER_NS, FLOPS_PER_NS = 3_000.0, 800_000.0
CHOSEN = {"olmoe": (8, 64), "qwen3-30b-a3b": (8, 128), "mixtral-8x7b": (2, 8)}
RUN_OF_ONE_NS = load("olmoe").expert_bytes("bf16") / BYTES_PER_NS + 12_000
HOST_NS = {
    "host launch layer": 8_000.0,
    "host launch run": 14_000.0,
    "host launch run of one": 11_000.0,
    "host launch run of one in a prompt": 91_500.0,
    "host event": 1_500.0,
    "host poll": 700.0,
    "host copy": 6_000.0,
    "run after its copy": RUN_OF_ONE_NS + 8_000.0,
    "run after its copy, beside copies": 1.05 * RUN_OF_ONE_NS + 23_000.0,
    "gap between two copies": 1_300.0,
    "copy, from begin to begin": 230_000.0,
    "lone copy, from the host's call to its end": 251_000.0,
    "host end of a step with copies": 90_000.0,
    "host end of a step without": 10_000.0,
}
ESTIMATE = {"evidence": "estimated", "source": "made up for a test", "band": "10%"}
OTHERS: dict[str, Any] = {
    "cpu_experts": {"hand_over": ["1us", "made"], "notice": ["1us", "made"]},
    "memory": {"workspace": ["1GiB", "made"]},
}


def decisions(cost: str) -> dict[str, Any]:
    """Return the section in which everything costs that much."""
    row = {key: [cost, "made"] for key in ("base", "per_expert", "per_command")}
    return {"decisions": {"place": "host", "default": row, "systems": {}}}


def model(name: str) -> Any:
    """Return what a fit asks of a model's pieces."""
    top_k, experts = CHOSEN[name]
    return SimpleNamespace(
        name=name,
        shape=load(name),
        top_k=top_k,
        experts=experts,
        prompt_tokens=lambda tokens: tokens * top_k // experts,
        run=None,
    )


def made_samples() -> dict[str, list[float]]:
    """Return samples of a GPU whose law is known."""
    found = {
        READ: CUDA.read_bytes / BYTES_PER_NS,
        PRODUCT: 2 * CUDA.product_width**3 / FLOPS_PER_NS,
        **HOST_NS,
    }
    for name in points.MODELS:
        shape = load(name).cost_shape("bf16")
        layer, (top_k, experts) = shape.layers[0], CHOSEN[name]
        found[points.head_name(name)] = 1.1 * shape.head_bytes / BYTES_PER_NS + 40_000
        for context in (*points.CONTEXTS, *points.HELD_CONTEXTS):
            cache_ns = context * layer.kv_bytes_per_token / BYTES_PER_NS
            repeated_ns = context * layer.repeated_kv_bytes_per_token / BYTES_PER_NS
            found[points.dense_name(name, context)] = (
                1.1 * layer.dense_bytes / BYTES_PER_NS
                + 120_000
                + 20_000 * layer.qk_norms
                + 11_000 * layer.kv_repeats
                + 1.5 * cache_ns
                + 4.0 * repeated_ns
            )
        looking = found[points.dense_name(name, points.CONTEXTS[0])] + 70_000
        found[points.dense_name(name, LOOKING)] = looking
        expert_ns = layer.expert_bytes / BYTES_PER_NS
        for chosen in (*points.FEWEST_RUN[name], *points.HELD_RUNS[name]):
            found[points.run_name(name, chosen)] = chosen * expert_ns + 12_000
        for tokens in (*points.PROMPTS[name], *points.HELD_PROMPTS[name]):
            flops = tokens * top_k // experts * layer.expert_flops_per_token
            one_ns = max(expert_ns, 3.0 * flops / FLOPS_PER_NS)
            found[points.prompt_name(name, tokens)] = experts * one_ns + 12_000
    for name in ("olmoe", "mixtral-8x7b"):
        for probe in (points.dense_name(name, 128), points.run_name(name, CHOSEN[name][0])):
            found[alone(probe)] = found[probe]
            found[beside(probe)] = 1.05 * found[probe]
    return {name: [value] * 5 for name, value in found.items()}


@pytest.fixture(scope="module")
def software(small_olmoe: Path) -> Any:
    """Return the software without a GPU: fits and replays need none."""
    found: Any = object.__new__(graphs.GraphSoftware)
    found._bench = SimpleNamespace(scale=CUDA)
    found._models = [model(name) for name in points.MODELS]
    for each in found._models:
        each.attend = each.forget = None
        each.run = lambda experts: experts
    found._figures = GraphFigures(found._models, CUDA)
    found._host = object.__new__(DriverHost)
    found._host._top_k = 8
    found._few, found._many, other = (session(small_olmoe, layers) for layers in (2, None, 3))
    found._others = [other]
    return found


def session(path: Path, layers: int | None) -> Session:
    """Return a session of the small model on this CPU."""
    lengths = Lengths(prompt=8, short=2, decode=6, skipped=2)
    return Session(str(path), layers, torch.device("cpu"), ThreadsDriver, lengths)


def new_sheet(samples: dict[str, list[float]]) -> Sheet:
    """Return a sheet of these samples."""
    return Sheet(samples, Provenance("a test", "2026-11-24", "none"))


def test_the_law_of_the_pieces_is_found_again(software: Any) -> None:
    """Multiples, fixed parts and host calls come out as the samples were made."""
    sheet = new_sheet(made_samples())
    found = software.sections(sheet)
    kernels, launch = found["kernels"], found["launch"]
    multiples = {
        "dense_multiple": 1.1,
        "attention_multiple": 1.5,
        "kv_repeat_multiple": 4.0,
        "expert_multiple": 1.0,
        "expert_compute_multiple": 3.0,
    }
    times_us = {
        "dense_fixed": 120,
        "qk_norm": 20,
        "kv_repeat": 11,
        "look_ahead": 70,
        "expert_fixed": 12,
        "expert_after_copy": 8,
        "expert_while_copying": 15,
    }
    assert multiples == pytest.approx({key: float(kernels[key][0]) for key in multiples}, rel=0.01)
    assert {key: 1_000 * us for key, us in times_us.items()} == pytest.approx(
        {key: parse_ns(kernels[key][0]) for key in times_us}, rel=0.01
    )
    assert parse_ns(launch["layer"][0]) == 8_000
    run_ns = parse_ns(launch["run"][0]) + parse_ns(launch["event"][0])
    assert run_ns + 8 * parse_ns(launch["per_expert"][0]) == pytest.approx(14_000, abs=20)
    assert parse_ns(launch["prompt_run"][0]) == 90_000
    assert parse_ns(found["copying"]["issue"][0]) == 4_500
    assert parse_ns(found["copying"]["start"][0]) == 251_000 - 230_000 - 6_000
    assert parse_ns(found["copying"]["overhead"][0]) == 1_300
    assert all(abs(check.error) < 0.01 for check in sheet.checks)


def test_a_faster_reader_than_the_plain_pass_gives_the_rate(software: Any) -> None:
    """Experts that are read faster than the plain pass was tell the memory's bandwidth."""
    samples = made_samples()
    samples[READ] = [1.1 * value for value in samples[READ]]
    sheet = new_sheet(samples)
    section = software.gpu(sheet)
    assert section["memory_bandwidth"][0] == "3000.000 GB/s"
    assert section["slow_down_while_copying"][0] == "50000ppm"
    assert Rates.of(sheet, CUDA).bytes_per_s < 2_800e9


def test_whole_tokens_complete_the_runtime_and_check_it(software: Any) -> None:
    """What tokens leave over is found beside what the decisions in the runtime cost."""
    samples = made_samples()
    first = new_sheet(samples)
    parts = software.sections(first) | OTHERS | decisions("3us")
    true = Rest(20_000, 90_000, 300_000, 9_000)
    tree = unfinished(true.put(parts, ("dense", "dense")), first.sources | {"made": ESTIMATE})
    runtime = validated(tree, RuntimeProfile, "true")
    for each in (software._few, software._many, *software._others):
        took = each.explained(load_machine("h100-sxm"), runtime)
        times = (took.token, took.short, took.prompt)
        samples |= {name: [time_ns] * 3 for name, time_ns in zip(each.names(), times, strict=True)}
    sheet = new_sheet(samples)
    found = software.sections(sheet) | OTHERS | decisions("3us")
    sheet.sources["made"] = dict(ESTIMATE)
    machine = read_tree(FOLDER / "h100-sxm.yaml")
    for key in ("schema", "name", "title"):
        del machine[key]
    software.complete(machine, found, sheet)
    assert parse_ns(found["wait"]["router"][0]) == pytest.approx(true.router, rel=0.01)
    assert parse_ns(found["kernels"]["head_fixed"][0]) == pytest.approx(true.head, rel=0.02)
    prompt_ns = parse_ns(found["launch"]["prompt_layer"][0])
    assert prompt_ns == pytest.approx(true.prompt_layer, rel=0.01)
    tokens: list[Check] = [c for c in sheet.checks if "small-olmoe" in c.name]
    assert len(tokens) == 3
    assert all(abs(check.error) < 0.01 for check in tokens)
    assert "3 points" not in sheet.sources["tokens"]["source"]
    assert "1 points not fitted" in sheet.sources["tokens"]["source"]


def test_decisions_cost_more_in_a_run_than_in_a_row(software: Any) -> None:
    """What a call takes longer as it runs stands in the base of every system, and its source."""
    running, in_a_row = software._many.decision_names()
    trace = load_trace(Path(samples.__path__[0]) / SAMPLE).head(requests=1)
    replays, _ = decided.replays(trace, ["on-demand", "mixtral-offloading"])
    names = [probe.name for probe in decided.probes(replays)]
    for replay in replays:
        replay.sample()
    made = dict.fromkeys(names, [5.0] * 3)
    warm = decided.decisions(replays, new_sheet(made), 0.0)
    sheet = new_sheet(made | {running: [9_000.0] * 3, in_a_row: [7_000.0] * 3})
    cold = decided.decisions(replays, sheet, software.cold_ns(sheet))
    for before, after in (
        (warm["default"], cold["default"]),
        (warm["systems"]["on-demand"], cold["systems"]["on-demand"]),
    ):
        assert parse_ns(after["base"][0]) == pytest.approx(parse_ns(before["base"][0]) + 2_000)
        assert after["per_expert"] == before["per_expert"]
        assert "2.000us more" in sheet.sources[after["base"][1]]["source"]
    faster = new_sheet({running: [6_000.0] * 3, in_a_row: [7_000.0] * 3})
    assert software.cold_ns(faster) == 0


def test_closing_releases_models_sessions_and_driver() -> None:
    """Each of what holds weights on the GPU is closed once."""
    closed: list[str] = []

    def holder(name: str) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: closed.append(name))

    found: Any = object.__new__(graphs.GraphSoftware)
    found._models, found._host = [holder("model")], holder("host")
    found._few, found._many, found._others = holder("few"), holder("many"), [holder("other")]
    found.close()
    assert sorted(closed) == ["few", "host", "many", "model", "other"]
