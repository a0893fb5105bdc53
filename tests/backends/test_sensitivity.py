"""Profiled and estimated sensitivity of layers to random routing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="sensitivity is profiled on a real model")

from moesim.backends import sensitivity, sensitivity_online  # noqa: E402  after the skip
from moesim.backends.reference.texts import Split, pack_rows  # noqa: E402

ROWS = np.random.default_rng(0).integers(0, 256, (2, 33)).astype(np.uint16)


@pytest.fixture
def model(make_model: Callable[[str], Any]) -> Any:
    """Return a tiny Qwen3-MoE of three layers."""
    return make_model("Qwen3Moe")


def test_rank_correlation_is_spearmans() -> None:
    """Order counts and nothing else; equal values share a rank; a constant says nothing."""
    assert sensitivity.spearman([1, 2, 3], [10, 100, 1000]) == 1.0
    assert sensitivity.spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert sensitivity.spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(0.948683, abs=1e-6)
    assert sensitivity.spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_only_the_layers_asked_for_are_rerouted(model: Any) -> None:
    """A profile of one layer leaves what the layers before it chose as it is."""
    from moesim.backends.reference.judge import Routes  # noqa: PLC0415

    batch = torch.from_numpy(ROWS.astype(np.int64))
    chosen = []
    for reroute in (None, sensitivity.only(range(1, 2), 8, seed=0)):
        routes = Routes(model, reroute)
        with torch.no_grad():
            model(batch, use_cache=False)
        chosen.append([ids.clone() for ids in routes.chosen])
        routes.remove()
    same = [torch.equal(one, other) for one, other in zip(*chosen, strict=True)]
    assert same == [True, False, False]


def test_a_profile_costs_what_the_corruption_costs(model: Any) -> None:
    """The first layer alone is the first step of the progression; the same seed repeats it."""
    found = sensitivity.profile(model, ROWS, seed=3)
    assert len(found.alone_L) == len(found.progressive_L) == len(found.agreement_L) == 3
    assert found.alone_L[0] == found.progressive_L[0]
    assert found.alone_L[1] != found.progressive_L[1]
    assert found == sensitivity.profile(model, ROWS, seed=3)
    assert all(0 <= agreement <= 1 for agreement in found.agreement_L)


def test_a_layer_matters_once_agreement_has_fallen() -> None:
    """The flag is the paper's s: below the threshold a layer matters."""
    found = sensitivity.Profile(1.0, (0, 0, 0), (0, 0, 0), (0.99, 0.85, 0.84), 1.0)
    assert found.matters_L() == (False, False, True)
    assert found.matters_L(0.9) == (False, True, True)


def test_signs_are_read_without_changing_an_answer(model: Any) -> None:
    """Watching leaves no hook behind, and every sign is within its range."""
    before, _ = sensitivity.answers(model, ROWS)
    signs = sensitivity_online.watch(model, ROWS)
    after, _ = sensitivity.answers(model, ROWS)
    assert torch.equal(before, after)
    for name in ("entropy", "first_gate", "turn"):
        assert all(0 < value <= 1 for value in signs[name])
    assert all(value > 0 for value in signs["change"])


def test_a_model_whose_blocks_do_more_is_more_sensitive(model: Any) -> None:
    """With the last layer's experts made ten times stronger, its change is the largest."""
    with torch.no_grad():
        model.model.layers[2].mlp.experts.down_proj.mul_(10)
    signs = sensitivity_online.watch(model, ROWS)
    assert max(signs["change"]) == signs["change"][2]


def test_estimates_are_fitted_on_other_tasks_alone() -> None:
    """A left-out task's own profile does not move its estimate, only the figure it is given."""
    rng = np.random.default_rng(0)
    cost = {task: tuple(rng.random(6)) for task in "abc"}
    signs = {
        task: {
            name: (np.asarray(cost[task]) ** power).tolist()
            for name, power in (("entropy", 1), ("first_gate", 2), ("change", 1), ("turn", 3))
        }
        for task in "abc"
    }

    def profiles(**changed: tuple[float, ...]) -> dict[str, sensitivity.Profile]:
        return {
            task: sensitivity.Profile(1.0, of, of, of, 1.0)
            for task, of in {**cost, **changed}.items()
        }

    ranked = sensitivity.left_out(profiles(), signs)
    assert ranked["line of other tasks"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    turned = sensitivity.left_out(profiles(a=tuple(-value for value in cost["a"])), signs)
    assert turned["line of other tasks"]["a"] == -1.0


def test_signs_are_watched_on_rows_that_are_not_profiled(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command profiles the first rows of a task and watches the next; too few are refused."""
    rng = np.random.default_rng(1)
    texts = {task: [rng.integers(0, 256, 150).astype(np.uint8).tobytes()] for task in "abc"}
    split = Split({}, texts, {"a.txt.xz": "0" * 64}, seed=5)
    monkeypatch.setattr(sensitivity, "read_split_of", lambda _model, _folders: split)
    monkeypatch.setattr(sensitivity, "read_model", lambda _model, _device: model)
    monkeypatch.setattr(sensitivity, "ROW_TOKENS", 33)
    seen: list[Any] = []
    watch = sensitivity_online.watch

    def watched(model: Any, rows: Any) -> Any:
        seen.append(rows)
        return watch(model, rows)

    monkeypatch.setattr(sensitivity_online, "watch", watched)
    output = tmp_path / "sensitivity.json"
    assert sensitivity.main(["model", "texts", "-o", str(output), "--rows", "2"]) == 0
    rows = pack_rows(texts["a"], 33)
    assert (seen[0] == rows[2:4]).all()
    document = json.loads(output.read_text())
    assert document["split_seed"] == 5
    assert set(document["spearman_left_out"]["change"]) == {"a", "b", "c"}
    assert "line of other tasks" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sensitivity.main(["model", "texts", "-o", str(output), "--rows", "3"])
    assert "--rows 3: task a has 4, and as many" in capsys.readouterr().err
