"""Recorded logits, the selection rule, and the routes: each gives the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the rules are those of real routers")
pytest.importorskip("transformers", reason="the rules are those of transformers' routers")

from moesim.backends.generation import Request, Sampling  # noqa: E402 - after the skip
from moesim.backends.models import ModelError, find_moe  # noqa: E402 - after the skip
from moesim.backends.recorder import Origin, record  # noqa: E402 - after the skip
from moesim.backends.selection import choose_experts  # noqa: E402 - after the skip
from moesim.traces import RoutingTrace  # noqa: E402 - after the skip

FAMILIES = [
    "Mixtral",
    "Qwen2Moe",
    "Qwen3Moe",
    "Olmoe",
    "GptOss",
    "DeepseekV2",
    "DeepseekV3",
    "Phimoe",
]
MakeModel = Callable[[str], Any]


def recorded(model: Any) -> RoutingTrace:
    """Record two requests with the routers' own logits."""
    requests = [Request(prompt=[5, 6, 7, 8, 9, 10, 11]), Request(prompt=[40, 41, 42])]
    return record(
        model,
        requests,
        Sampling(new_tokens=8, temperature=1.0, ignore_eos=True),
        Origin(model="tiny"),
        signals=("router_logits", "token"),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_give_ids_and_gates_by_the_rule(make_model: MakeModel, family: str) -> None:
    """Every token's experts are exactly those of the rule, and so are its gates in float16."""
    model = make_model(family)
    trace, parts = recorded(model), find_moe(model)
    assert trace.gate_TLK is not None
    for layer in range(trace.layers):
        logits_TE = torch.from_numpy(trace.signals["router_logits_TLE"][:, layer])
        gate_TK, expert_TK = choose_experts(parts, layer, logits_TE)
        by_id = expert_TK.argsort(dim=1)
        was_by_id = np.argsort(trace.expert_TLK[:, layer], axis=1)
        np.testing.assert_array_equal(
            expert_TK.gather(1, by_id).numpy(),
            np.take_along_axis(trace.expert_TLK[:, layer], was_by_id, axis=1),
        )
        np.testing.assert_array_equal(
            gate_TK.half().gather(1, by_id).numpy(),
            np.take_along_axis(trace.gate_TLK[:, layer], was_by_id, axis=1),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_forced_to_the_recorded_ids_the_routers_say_the_recorded_logits(
    make_model: MakeModel, family: str
) -> None:
    """One forward pass whose routers must answer the recorded ids gives every recorded logit."""
    model = make_model(family)
    trace, parts = recorded(model), find_moe(model)
    rows = trace.request_T == 0
    said: list[Any] = []
    for index, layer in enumerate(parts.layers):
        recorded_TE = torch.from_numpy(trace.signals["router_logits_TLE"][rows, index])
        gate_TK, expert_TK = choose_experts(parts, index, recorded_TE)
        own_ids = torch.from_numpy(trace.expert_TLK[rows, index]).sort(dim=1).values
        assert torch.equal(own_ids.long(), expert_TK.sort(dim=1).values)

        def force(
            module: Any, inputs: Any, output: Any, forced: tuple[Any, Any] = (gate_TK, expert_TK)
        ) -> Any:
            del module, inputs
            said.append(output[0])
            return output[0], *forced

        layer.router.register_forward_hook(force)
    with torch.no_grad():
        model(torch.from_numpy(trace.signals["token_T"][rows][None].astype(np.int64)))
    for index, logits_TE in enumerate(said):
        np.testing.assert_allclose(
            logits_TE.numpy(),
            trace.signals["router_logits_TLE"][rows, index],
            rtol=1e-3,
            atol=1e-3,
        )


def test_other_ids_give_other_logits(make_model: MakeModel) -> None:
    """The check above would notice: with one layer's experts exchanged, the next one differs."""
    model = make_model("Mixtral")
    trace, parts = recorded(model), find_moe(model)
    rows = trace.request_T == 0
    said: list[Any] = []
    parts.layers[0].router.register_forward_hook(
        lambda module, inputs, output: (output[0], output[1], (output[2] + 1) % 8)  # noqa: ARG005 - torch's signature
    )
    parts.layers[1].router.register_forward_hook(
        lambda module, inputs, output: said.append(output[0])  # noqa: ARG005 - torch's signature
    )
    with torch.no_grad():
        model(torch.from_numpy(trace.signals["token_T"][rows][None].astype(np.int64)))
    assert np.abs(said[0].numpy() - trace.signals["router_logits_TLE"][rows, 1]).max() > 0.1


def test_a_rule_that_is_not_known_is_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router outside the table is named."""
    monkeypatch.delitem(
        __import__("moesim.backends.models", fromlist=["ROUTERS"]).ROUTERS, "MixtralTopKRouter"
    )
    with pytest.raises(ModelError, match="MixtralTopKRouter: its selection rule is not known"):
        choose_experts(find_moe(make_model("Mixtral")), 0, torch.zeros(1, 8))
