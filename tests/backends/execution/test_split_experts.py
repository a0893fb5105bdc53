"""Experts that are split, on a real model: the same bits, the same decisions, part by part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")
transformers = pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.controllers import Deciding, splits  # noqa: E402
from moesim.backends.drivers.cuda.graphed_experts import kernel_layout  # noqa: E402
from moesim.backends.drivers.cuda.grouped_experts import most_parts  # noqa: E402
from moesim.backends.execution import Keep, execute  # noqa: E402  after torch was looked for
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.row_layouts import RowLayout  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference, resident_logits  # noqa: E402
from moesim.simulator import systems  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.errors import CapabilityError  # noqa: E402
from moesim.simulator.messages import Copy  # noqa: E402
from moesim.simulator.terms import Cause  # noqa: E402
from moesim.simulator.workload.demands import Workload  # noqa: E402

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "Phimoe", "DeepseekV3")
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10), (250, 3, 3))
NEW_TOKENS = 6
ORDER_NOISE = 1e-5
"""Of the largest logit: sums of sixteen pieces against sums in one go."""

SPLIT = {
    "half": ("split:theta=0.5/lcp", "none", 12),
    "quarter, by the gates": ("split:theta=0.25/lcp", "next_gate:horizon=1", 9),
    "nothing kept": ("split:theta=0/lcp", "next_gate:horizon=1", 9),
    "searched": ("adaptive_split:foresees=false,refresh=5/lcp", "none", 12),
}
EVERYTHING = ("lru", "none", 400)


class BySplit:
    """A model whose experts are kept row by row, and what it says with all of them resident."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.in_place = resident_logits(model, PROMPTS, NEW_TOKENS)
        self.store = ExpertStore.take_from(model, by_row=True)
        self.resident = self.run(*EVERYTHING)[0]

    def run(self, cache: str, prefetch: str, slots: int) -> tuple[Any, Any]:
        """Execute the prompts, and return what came of it and what decided."""
        parts, size = self.store.parts, self.store.sizes_L[0]
        costs = CostModel.for_tests(
            layers=len(parts.layers), experts=parts.experts, top_k=parts.top_k, expert_bytes=size
        )
        deciding = Deciding(
            policies={"cache": cache, "prefetch": prefetch, "schedule": "resident_first"},
            budget_bytes=slots * size,
            costs=costs,
        )
        done = execute(
            self.model,
            self.store,
            [Request(prompt=prompt) for prompt in PROMPTS],
            deciding,
            Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
            keep=Keep(logits=True, log=True),
        )
        return done, deciding

    def fresh(self, deciding: Any) -> Any:
        """Return another controller of the same kind."""
        parts = self.store.parts
        return deciding.controller(
            experts=parts.experts,
            top_k=parts.top_k,
            sizes_L=self.store.sizes_L,
            keep_log=True,
        )


@pytest.fixture(scope="module")
def by_split(make_model: Callable[[str], Any]) -> Callable[[str], BySplit]:
    """Return a function that gives a family's tiny model; made once each."""
    made: dict[str, BySplit] = {}

    def get(family: str) -> BySplit:
        if family not in made:
            made[family] = BySplit(make_model(family))
        return made[family]

    return get


def assert_equal_logits(ours: Any, theirs: Any) -> None:
    """Compare every step's logits bit by bit."""
    for mine, yours in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def commands(log: Any) -> list[Any]:
    """Return every command in order."""
    return [command for _, _, answer in log for command in answer]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SPLIT)
def test_parts_give_the_bits_of_the_whole(
    by_split: Callable[[str], BySplit], family: str, name: str
) -> None:
    """Logits and text are those of all experts resident; the log is answered alike."""
    it = by_split(family)
    done, deciding = it.run(*SPLIT[name])

    assert done.counts.misses > 0
    assert (done.counts.partial_hits > 0) is ("theta=0/" not in SPLIT[name][0])
    assert it.resident.tokens == done.tokens
    assert_equal_logits(it.resident.logits, done.logits)
    assert first_difference(done.log, it.fresh(deciding)) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_agree_with_whole_products(by_split: Callable[[str], BySplit], family: str) -> None:
    """Sums of pieces are those of the model's own products but for their rounding."""
    it = by_split(family)
    for ours, theirs in zip(it.resident.logits, it.in_place, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) <= ORDER_NOISE


def replayed(it: BySplit, deciding: Any, trace: Any) -> Any:
    """Return a controller that has served a trace without a clock."""
    controller = it.fresh(deciding)
    count(controller, Workload(trace), budget_bytes=deciding.budget_bytes)
    return controller


def test_replay_and_execution_decide_alike(by_split: Callable[[str], BySplit]) -> None:
    """Without prefetch a replay of the served routes gives every command again."""
    it = by_split("Qwen3Moe")
    done, deciding = it.run(*SPLIT["half"])
    assert deciding.timing_free

    again = replayed(it, deciding, done.trace)

    assert len(commands(done.log)) > 100
    assert commands(again.log) == commands(done.log)


def test_pools_are_cut_alike_in_replay_and_execution(
    by_split: Callable[[str], BySplit],
) -> None:
    """The first search moves the same tops to the same places, whoever drives."""
    it = by_split("Qwen3Moe")
    done, deciding = it.run(*SPLIT["searched"])
    again = replayed(it, deciding, done.trace)

    ours, theirs = (first_rebalancing(log) for log in (done.log, again.log))

    assert len(ours) > 1
    assert theirs == ours


def first_rebalancing(log: Any) -> list[Any]:
    """Return expert, part and places of the copies of the first rebalancing."""
    for _, _, answer in log:
        copies = [c for c in answer if isinstance(c, Copy) and c.cause is Cause.REBALANCE]
        if copies:
            return [copy[1:5] for copy in copies]
    return []


def test_the_trained_model_says_the_same(repository: Path) -> None:
    """MoEpic serves the reference model in parts, and its text is the resident model's."""
    transformers.utils.logging.disable_progress_bar()
    weights = repository / "backends" / "reference" / "weights"
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    it = BySplit(model.eval())
    for name in ("moepic", "moepic-static"):
        bundle = systems.load(name)
        assert splits({"cache": bundle.cache})
        done, _ = it.run(bundle.cache, bundle.prefetch, 150)
        assert done.counts.partial_hits > 0
        assert it.resident.tokens == done.tokens
        assert [[int(step.argmax()) for step in request] for request in it.in_place] == done.tokens


def test_experts_that_cannot_be_cut_are_refused(make_model: Callable[[str], Any]) -> None:
    """Biases belong to no piece; the line names the kind of experts."""
    with pytest.raises(CapabilityError, match="GptOssExperts: experts with biases"):
        ExpertStore.take_from(make_model("GptOss"), by_row=True)


def test_kernels_find_parts_by_row(make_model: Callable[[str], Any]) -> None:
    """What a GPU would launch of a quarter is its rows, and its pieces follow the top's four."""
    store = ExpertStore.take_from(make_model("Mixtral"), by_row=True)
    whole = kernel_layout(store)
    assert whole is not None
    size = store.sizes_L[0]
    part = store.layouts[0].part(size // 4, size // 2)
    assert isinstance(part, RowLayout)
    assert (whole.name, whole.pieces, most_parts(whole)) == ("by-row", 16, 2)
    assert (part.rows.first_piece, part.rows.pieces) == (4, 4)
    assert part.blob_bytes == size // 4
    assert part.rows.intermediate == whole.intermediate // 4


def test_whole_blobs_have_no_parts(make_model: Callable[[str], Any]) -> None:
    """A store matrix by matrix refuses to run a top, and a store row by row half a row."""
    store = ExpertStore.take_from(make_model("Mixtral"))
    size = store.sizes_L[0]
    assert store.layouts[0].part(0, size) is store.layouts[0]
    with pytest.raises(CapabilityError, match="matrix by matrix"):
        store.layouts[0].part(0, size // 2)
    layout = ExpertStore.take_from(make_model("Mixtral"), by_row=True).layouts[0]
    assert isinstance(layout, RowLayout)
    with pytest.raises(CapabilityError, match="are no rows of"):
        layout.part(0, 8)
