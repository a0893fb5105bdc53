"""What can be recorded beside ids and gates: name, tap, when it is known, and who pays for it."""

from collections.abc import Iterable

from moesim.simulator.errors import UnknownNameError
from moesim.traces import SignalSpec

LOOK_IN_TAP = "residual after layer l's attention, through layer l+1+h's norm and router"
SPECS: dict[str, dict[str, SignalSpec]] = {
    "router_probs": {
        "router_probs_TLE": SignalSpec(
            tap="router, before selection", known_at="layer_routed", producer="router"
        ),
    },
    "look_in": {
        name: SignalSpec(
            tap=LOOK_IN_TAP, known_at="layer_routed", producer="look_ahead", cost_resource="gpu"
        )
        for name in ("look_in_TLHM", "look_in_score_TLHM")
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
