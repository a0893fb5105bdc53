"""``moesim train-predictor`` as a user meets it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from moesim.backends.predictors.commands import train_predictor
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import InputError
from moesim.simulator.testing import small_run
from moesim.traces import RoutingTrace, load, synthetic, write

pytest.importorskip("torch", reason="the command trains torch networks")

APP = typer.Typer()
APP.command()(train_predictor)


def run(*words: object) -> Any:
    """Run the command in this process."""
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, patterned: RoutingTrace) -> Path:
    """Return the file of the patterned trace."""
    path = tmp_path_factory.mktemp("given") / "trace.safetensors"
    write(patterned, path)
    return path


def test_a_predictor_and_a_trace_with_answers_are_written(tmp_path: Path, given: Path) -> None:
    """The table has trained ones, rules and ceilings; a policy reads the answers in a replay."""
    output, told = tmp_path / "p.safetensors", tmp_path / "told.npz"
    done = run(given, "-o", output, "--annotate", told, "--epochs", 2, "--order", "recorded")
    assert done.exit_code == 0, done.output
    for name in ("random", "static set", "light", "XLNet all_layers", "XLNet by_layer", "perfect"):
        assert name in done.output
    assert "learned from 33 prompts, judged on 15" in done.output
    trace = load(told)
    assert trace.requests == 15
    assert trace.header.signals["light_use_RLE"].known_at == "request_arrived"
    served = small_run(
        trace,
        cache="periodic:period=1,predictor=signal,signal=perfect_use_RLE",
        prefetch="none",
        schedule="resident_first",
        slots=3 * 2 + 2,
    )
    controller = served.controller()
    count(controller, served.workload(), budget_bytes=served.memory.expert_bytes)
    assert controller.counts.misses == 0


def test_the_table_alone_needs_no_file(tmp_path: Path, given: Path) -> None:
    """Weights and answers are written only where they are asked for."""
    told = tmp_path / "told.npz"
    assert run(given, "--epochs", 1).exit_code == 0
    assert run(given, "--annotate", told, "--epochs", 1).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["told.npz"]


def test_the_same_training_writes_the_same_bytes(tmp_path: Path, given: Path) -> None:
    """Durations are printed and kept out of the files."""
    files = []
    for name in ("a", "b"):
        output, told = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.npz"
        assert run(given, "-o", output, "--annotate", told, "--epochs", 1).exit_code == 0
        files.append((output.read_bytes(), told.read_bytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--order", "sorted"), "no order 'sorted'; there are: drifting, grouped"),
        (("--fit-share", 1.5), "--fit-share 1.5: expected a share between 0 and 1"),
        (("--held-experts", 0), "--held-experts 0: expected a share between 0 and 1"),
        (("--fit-share", 0.001), "none is left to learn from"),
        (("--annotate", "x.txt"), "give a file that ends in one of"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    tmp_path: Path, given: Path, options: tuple[object, ...], message: str
) -> None:
    """It names option, value and what would do, and nothing is written."""
    done = run(given, "-o", tmp_path / "p.safetensors", *options)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_an_output_of_another_kind_is_refused(tmp_path: Path, given: Path) -> None:
    """A predictor is a safetensors file."""
    done = run(given, "-o", tmp_path / "p.npz")
    assert "give a file that ends in .safetensors" in str(done.exception)


def test_answers_are_shares_in_half_precision(tmp_path: Path, given: Path) -> None:
    """What the signals hold sums to one in each layer."""
    told = tmp_path / "told.safetensors"
    assert (
        run(given, "-o", tmp_path / "p.safetensors", "--annotate", told, "--epochs", 1).exit_code
        == 0
    )
    use_RLE = np.asarray(load(told).signals["xlnet_by_layer_use_RLE"], np.float32)
    assert np.allclose(use_RLE.sum(axis=2), 1, atol=0.01)


def test_a_policy_asks_the_file_that_was_written(tmp_path: Path, given: Path) -> None:
    """A network that learned who follows whom is asked in a replay of a trace without signals.

    At p = 1 it serves more than the last prompt's experts do; another file makes another run.
    """
    output = tmp_path / "p.safetensors"
    assert run(given, "-o", output, "--epochs", 160, "--order", "recorded").exit_code == 0

    def replay(options: str) -> Any:
        return small_run(
            load(given),
            cache=f"periodic:period=1,{options}",
            prefetch="none",
            schedule="resident_first",
            slots=3 * 2 + 2,
        )

    def hits(options: str) -> int:
        served = replay(options)
        controller = served.controller()
        count(controller, served.workload(), budget_bytes=served.memory.expert_bytes)
        return controller.counts.hits

    asked = f"predictor=network,file={output}"
    last = hits("window=1")
    assert hits(asked) > 1.5 * last
    assert hits(f"{asked},variant=by_layer") > 1.5 * last
    before = replay(asked).run_id
    assert run(given, "-o", output, "--epochs", 1, "--order", "recorded").exit_code == 0
    assert replay(asked).run_id != before


def test_a_network_of_another_model_is_refused(
    tmp_path: Path, given: Path, patterned: RoutingTrace
) -> None:
    """Layers and experts have to be those that it was trained for."""
    output = tmp_path / "p.safetensors"
    assert run(given, "-o", output, "--epochs", 1).exit_code == 0
    other = synthetic.uniform(seed=0, layers=2, experts=8, top_k=2, requests=2)
    asked = small_run(other, cache=f"periodic:predictor=network,file={output}", slots=8)
    assert patterned.layers != other.layers
    with pytest.raises(InputError, match="trained for 3 layers x 8 experts, the run has 2 x 8"):
        asked.controller()
