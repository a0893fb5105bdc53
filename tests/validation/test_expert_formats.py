"""Experts written in fp8 or int4: fewer bytes are copied, and products are those of the codes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="it runs a real model")

from moesim.backends.opening import open_model  # noqa: E402 - after the skip
from moesim.backends.row_layouts import ROWS  # noqa: E402
from moesim.backends.sources import Source  # noqa: E402
from moesim.simulator.errors import CapabilityError, InputError, UnknownNameError  # noqa: E402
from moesim.simulator.terms import PIECES  # noqa: E402
from moesim.traces import RoutingTrace, write  # noqa: E402
from moesim.validation.commands import validate  # noqa: E402
from moesim.validation.evidence_files import read_folder  # noqa: E402

WIDTH, INTERMEDIATE = 128, 64
WEIGHTS = 3 * WIDTH * INTERMEDIATE
app = typer.Typer()
app.command()(validate)


@pytest.fixture
def shape(write_shape: Callable[..., Path]) -> str:
    """Return a shape whose rows are a group of int4."""
    return str(write_shape(hidden=WIDTH, expert_width=INTERMEDIATE))


@pytest.mark.parametrize(("form", "bits"), [("fp8", 8), ("int4", 4)])
def test_the_store_holds_codes(shape: str, form: str, bits: int) -> None:
    """An expert takes its bits, and little more; it decodes to weights of their scale."""
    opened = open_model(Source(shape, "random", None, None, form), torch.device("cpu"))
    store = opened.store
    size = store.sizes_L[0]
    assert WEIGHTS * bits / 8 < size < WEIGHTS * bits / 8 * 1.1
    assert {layer.expert_bytes for layer in opened.costs_of.layers} == {size}
    rows = store.matrices(0)[ROWS]
    assert tuple(rows.shape) == (PIECES, INTERMEDIATE // PIECES, 3, WIDTH)
    assert rows.dtype == torch.float32
    assert float(rows.std()) == pytest.approx(0.02, rel=0.05)
    assert opened.checkpoint.name == f"tiny random weights, experts in {form}"


@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_a_cell_of_narrow_experts(
    tmp_path: Path, shape: str, trace_of: Callable[..., RoutingTrace], form: str
) -> None:
    """Predicted and executed alike, whole experts and split ones, with the bytes of the codes."""
    trace, folder = tmp_path / "routes.npz", tmp_path / "evidence"
    write(trace_of(requests=3), trace)
    words: list[Any] = ["--model", shape, "--weights", "random", "--format", form]
    words += ["--trace", trace, "--warm", 2, "--tokens", 10, "--repeats", 1, "--slots", "50%"]
    words += ["--system", "on-demand,split/lru+none+resident_first", "-o", folder]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    store = open_model(Source(shape, "random", None, None, form), torch.device("cpu")).store
    found = {one.prediction.cell.system: one for one in read_folder(folder)}
    assert found.keys() == {"on-demand", "split/lru+none+resident_first"}
    for one in found.values():
        assert one.judged.decisions_right
        assert one.prediction.cell.model == f"tiny random weights, experts in {form}"
    counts = found["on-demand"].executions[0].outcome.counts
    assert counts["bytes_demand"] == counts["copies"] * store.sizes_L[0]


def test_what_cannot_be_written_is_refused(shape: str, write_shape: Callable[..., Path]) -> None:
    """A format unknown, a model with weights of its own, a width that groups do not fit."""
    with pytest.raises(UnknownNameError, match="no format of experts 'fp9'"):
        Source(shape, "random", format="fp9").check()
    with pytest.raises(InputError, match="--format go with --weights random"):
        Source("a/b", format="fp8").check()
    narrow = str(write_shape(hidden=64))
    with pytest.raises(CapabilityError, match="format int4: width 64 is no multiple of 128"):
        open_model(Source(narrow, "random", format="int4"), torch.device("cpu"))
