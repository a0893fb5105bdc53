"""What can be recorded beside ids and gates: name, tap, when it is known, and who pays for it."""

from collections.abc import Iterable

from moesim.simulator.errors import UnknownNameError
from moesim.traces import SignalSpec

LOOK_IN_TAP = "residual after layer l's attention, through layer l+1+h's norm and router"
LOOK_OUT_TAP = "residual after layer l's experts, through layer l+1+h's norm and router"
SPECS: dict[str, dict[str, SignalSpec]] = {
    "router_logits": {
        "router_logits_TLE": SignalSpec(
            tap="router's own answer", known_at="layer_routed", producer="router"
        ),
    },
    "router_probs": {
        "router_probs_TLE": SignalSpec(
            tap="router, before selection", known_at="layer_routed", producer="router"
        ),
    },
    "router_top": {
        name: SignalSpec(
            tap="router, before selection: the 2k best", known_at="layer_routed", producer="router"
        )
        for name in ("router_top_TLM", "router_top_score_TLM")
    },
    "look_in": {
        name: SignalSpec(
            tap=LOOK_IN_TAP, known_at="layer_routed", producer="look_ahead", cost_resource="gpu"
        )
        for name in ("look_in_TLHM", "look_in_score_TLHM")
    },
    "look_out": {
        name: SignalSpec(
            tap=LOOK_OUT_TAP, known_at="layer_end", producer="look_ahead", cost_resource="gpu"
        )
        for name in ("look_out_TLHM", "look_out_score_TLHM")
    },
    "hidden": {
        "hidden_TLD": SignalSpec(
            tap="residual after layer l's attention", known_at="layer_routed", producer="router"
        ),
    },
    "embedding": {
        "embedding_TD": SignalSpec(
            tap="token embeddings, mean over the step", known_at="step_begin", producer="embedding"
        ),
    },
    "prompt_embedding": {
        "prompt_embedding_RD": SignalSpec(
            tap="token embeddings, mean over the prompt",
            known_at="request_arrived",
            producer="embedding",
            cost_resource="gpu",
        ),
    },
    "token": {
        "token_T": SignalSpec(tap="input ids", known_at="step_begin", producer="tokenizer"),
    },
}


def choose_signals(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in the order of the table, each once.

    Raises:
        UnknownNameError: A name is not in the table.
    """
    wanted = set(names)
    for name in sorted(wanted):
        if name not in SPECS:
            raise UnknownNameError("signal", name, SPECS)
    return tuple(name for name in SPECS if name in wanted)
