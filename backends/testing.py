"""What every backend has to do, checked by running it: for authors of new drivers.

::

    from moesim.backends.testing import check_backend

    def test_my_driver() -> None:
        check_backend(MyDriver, torch.device("mps"))
"""

from collections.abc import Mapping, Sequence

import torch
import transformers

from moesim.backends.batches import arrivals_for
from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution, Keep, Log, MakeDriver, execute
from moesim.backends.experts import RESIDENT
from moesim.backends.generation import Request, Sampling
from moesim.backends.models import Model
from moesim.backends.store import ExpertStore
from moesim.simulator.controller import Controller
from moesim.simulator.registry import Axis, parse
from moesim.simulator.tiers.plan import TierPlan

PROMPTS = ((5, 9, 200, 17, 33, 4, 90), (7, 8), (250, 3, 3, 3, 61))
NEW_TOKENS = 6
SMALL_SLOTS = 4
LARGE_SLOTS = 14
LENT_SLOTS = 12

# What each system exercises, and its room for experts.
SYSTEMS: Mapping[str, tuple[Mapping[Axis, str], int]] = {
    "waves in a shared cache": (
        {"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
        SMALL_SLOTS,
    ),
    "a pool for each layer": (
        {"cache": "lru:scope=per_layer", "prefetch": "none", "schedule": "resident_first"},
        LARGE_SLOTS,
    ),
    "staging": ({"cache": "transient", "prefetch": "none", "schedule": "on_demand"}, SMALL_SLOTS),
    "prefetch": (
        {
            "cache": "lru",
            "prefetch": "next_gate:horizon=2",
            "schedule": "resident_first",
        },
        LARGE_SLOTS,
    ),
}
CPU_EXPERTS: Mapping[Axis, str] = {
    "cache": "lru",
    "prefetch": "transition_table:fit=online",
    "schedule": "cpu_on_miss",
}
BATCHES: Mapping[str, Mapping[Axis, str]] = {
    "a batch": {
        "cache": "lru",
        "prefetch": "none",
        "schedule": "fcfs:max_batch=2/resident_first",
    },
    "a batch in pieces": {
        "cache": "lru",
        "prefetch": "next_gate:horizon=1",
        "schedule": "fcfs:max_batch=3,chunk=4/resident_first",
    },
}
ALL_FIT: Mapping[Axis, str] = {
    "cache": "lru",
    "prefetch": "none",
    "schedule": "resident_first",
}
TOLERANCE = 1e-4
"""Of the largest logit, in float32, where other kernels computed."""


def tiny_model(context: int = 64) -> Model:
    """Return a Mixtral of three layers of eight experts top-2 with random weights, in float32.

    Args:
        context: The most tokens of a request.
    """
    config = transformers.MixtralConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        num_local_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model: Model = transformers.MixtralForCausalLM(config)
    return model.eval()


def check_backend(
    make_driver: MakeDriver,
    device: torch.device,
    *,
    has_cpu_experts: bool = True,
    has_lender: bool = False,
) -> None:
    """Run a driver through systems that use all of it, and compare with the resident model.

    Text and logits must be those of the same driver with room for every expert, bit by bit, and
    those close to the logits of the model with its experts in place; the fact log must be answered
    alike by a fresh controller; the books must balance.

    Args:
        make_driver: Makes the driver under test; requests also run together on it, whose logits
            differ a little from those of each alone.
        device: Where the model's other weights go.
        has_cpu_experts: Whether the driver runs experts on the CPU; their logits may differ a
            little, their text may not.
        has_lender: Whether another GPU lends memory to the driver's.

    Raises:
        AssertionError: One line that says which system, and what differs first.
    """
    model = tiny_model().to(device)
    in_place = resident_logits(model, PROMPTS, NEW_TOKENS)
    store = ExpertStore.take_from(model, pin=device.type == "cuda")
    everything = store.parts.experts * len(store.sizes_L)
    done, _ = _run(model, store, ALL_FIT, everything, make_driver)
    assert done.logits is not None
    expected = done.logits
    _check_close("all fit", expected, in_place)
    lent = TierPlan(peer=parse("cache", "lru"), peer_bytes=LENT_SLOTS * store.sizes_L[0])
    checked: list[tuple[str, Mapping[Axis, str], int, TierPlan | None]] = [
        (name, policies, slots, None) for name, (policies, slots) in SYSTEMS.items()
    ]
    if has_lender:
        checked.append(("another GPU's memory", ALL_FIT, SMALL_SLOTS, lent))
    for name, policies, slots, tiers in checked:
        done, deciding = _run(model, store, policies, slots, make_driver, tiers)
        assert done.logits is not None
        assert tiers is None or done.counts.bytes_peer > 0, f"{name}: nothing came from there"
        for request, (ours, theirs) in enumerate(zip(done.logits, expected, strict=True)):
            for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                assert torch.equal(a, b), f"{name}: request {request} step {step}: logits differ"
        _check_log(name, done, deciding, store)
    for name, policies in BATCHES.items():
        done, deciding = _run(model, store, policies, SMALL_SLOTS, make_driver)
        assert done.logits is not None
        _check_close(name, done.logits, expected)
        _check_log(name, done, deciding, store)
    if has_cpu_experts:
        done, deciding = _run(model, store, CPU_EXPERTS, LARGE_SLOTS, make_driver)
        assert done.counts.cpu_experts > 0, "CPU experts: none ran"
        assert done.logits is not None
        _check_close("CPU experts", done.logits, expected)
        _check_log("CPU experts", done, deciding, store)


@torch.inference_mode()
def resident_logits(
    model: Model, prompts: Sequence[Sequence[int]], new_tokens: int, experts: str = RESIDENT
) -> list[list[torch.Tensor]]:
    """Return the logits of greedy decoding with every expert in place.

    Args:
        model: With its experts, which it keeps.
        prompts: Token ids.
        new_tokens: For each prompt; the end-of-text token is passed over.
        experts: Which experts function of transformers computes.
    """
    model.set_experts_implementation(experts)
    device = next(model.parameters()).device
    kept = []
    for prompt in prompts:
        cache = transformers.DynamicCache(config=model.config)
        fed, logits = list(prompt), []
        for _ in range(new_tokens):
            out = model(
                torch.tensor([fed], device=device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits.append(out.logits[0, -1].clone())
            fed = [int(logits[-1].argmax())]
        kept.append(logits)
    return kept


def first_difference(log: Log, controller: Controller) -> str | None:
    """Feed a fact log to a fresh controller; return where its commands first differ, or None."""
    for call, (facts, now_ns, commands) in enumerate(log):
        answer = controller.handle(list(facts), now_ns)
        for at, (ours, theirs) in enumerate(zip(answer, commands, strict=False)):
            if ours != theirs:
                return f"call {call} command {at}: {ours} where the log has {theirs}"
        if len(answer) != len(commands):
            return f"call {call}: {len(answer)} commands where the log has {len(commands)}"
    return None


def _run(
    model: Model,
    store: ExpertStore,
    policies: Mapping[Axis, str],
    slots: int,
    make_driver: MakeDriver,
    tiers: TierPlan | None = None,
) -> tuple[Execution, Deciding]:
    deciding = Deciding(policies=policies, budget_bytes=slots * store.sizes_L[0], tiers=tiers)
    done = execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        deciding,
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
        keep=Keep(logits=True, log=True),
        make_driver=make_driver,
        arrivals=arrivals_for(policies, len(PROMPTS)),
    )
    return done, deciding


def _check_close(
    name: str, ours: Sequence[Sequence[torch.Tensor]], theirs: Sequence[Sequence[torch.Tensor]]
) -> None:
    for mine, yours in zip(ours, theirs, strict=True):
        for a, b in zip(mine, yours, strict=True):
            error = float((a - b).abs().max() / b.abs().max())
            assert error <= TOLERANCE, f"{name}: logits differ by {error:.2e}"


def _check_log(name: str, done: Execution, deciding: Deciding, store: ExpertStore) -> None:
    assert done.log is not None
    fresh = deciding.controller(
        experts=store.parts.experts, top_k=store.parts.top_k, sizes_L=store.sizes_L
    )
    difference = first_difference(done.log, fresh)
    assert difference is None, f"{name}: {difference}"
