"""What is recorded is what the model did: checked on tiny random models of every family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the recorder runs a real model")
pytest.importorskip("transformers", reason="the recorder runs a transformers model")

from moesim.backends.generation import Request, Sampling  # noqa: E402 - after the skip
from moesim.backends.models import ModelError, find_moe  # noqa: E402 - after the skip
from moesim.backends.recorder import Origin, record  # noqa: E402 - after the skip
from moesim.backends.signals import SPECS  # noqa: E402
from moesim.traces import RoutingTrace, TraceError  # noqa: E402

# T tokens, L MoE layers, E experts of a layer, K chosen, H horizons, M top-m.
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
PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [40, 41, 42], [250, 3, 9, 77])
SAMPLING = Sampling(new_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
ORIGIN = Origin(model="tiny")

MakeModel = Callable[[str], Any]


def record_all(model: Any, *, sampling: Sampling = SAMPLING, batch: int = 1) -> RoutingTrace:
    """Record three requests with every signal."""
    requests = [Request(prompt=prompt, task=f"task {len(prompt)}") for prompt in PROMPTS]
    return record(model, requests, sampling, ORIGIN, signals=tuple(SPECS), horizons=2, batch=batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_trace_is_valid(make_model: MakeModel, family: str) -> None:
    """It keeps every promise of the schema; where a rule is known, it gives ids and gates."""
    trace = record_all(make_model(family))
    trace.validate(family)
    assert trace.header.evidence == "recorded"
    assert trace.prompt_tokens_R.tolist() == [7, 3, 4]
    assert trace.output_tokens_R.tolist() == [6, 6, 6]
    assert trace.tokens == 7 + 3 + 4 + 3 * 5
    assert trace.task_R == ("task 7", "task 3", "task 4")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_gives_what_single_requests_give(
    make_model: MakeModel, family: str, batch: int
) -> None:
    """Padded to one length and run together, requests have the same tokens, experts and signals."""
    model = make_model(family)
    alone, together = record_all(model), record_all(model, batch=batch)
    assert alone.header == together.header
    for name, array in alone.arrays().items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(
                array.astype(np.float32),
                together.arrays()[name].astype(np.float32),
                rtol=2e-3,
                atol=2e-3,
                err_msg=name,
            )
        else:
            np.testing.assert_array_equal(array, together.arrays()[name], err_msg=name)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "GptOss"])
def test_recorded_probabilities_give_the_recorded_experts(
    make_model: MakeModel, family: str
) -> None:
    """The k most probable experts are the recorded ones, in the recorded order."""
    trace = record_all(make_model(family))
    probs_TLE = trace.signals["router_probs_TLE"].astype(np.float32)
    np.testing.assert_allclose(probs_TLE.sum(axis=2), 1, atol=4e-3)
    top_TLK = np.argsort(-probs_TLE, axis=2, kind="stable")[..., : trace.top_k]
    best = np.take_along_axis(probs_TLE, top_TLK, axis=2)
    chosen = np.take_along_axis(probs_TLE, trace.expert_TLK.astype(np.int64), axis=2)
    np.testing.assert_array_equal(best, chosen)


def test_a_wrong_rule_would_be_noticed(make_model: MakeModel) -> None:
    """The check that passes above fails when two experts of one token are exchanged for others."""
    trace = record_all(make_model("Mixtral"))
    wrong_TLK = trace.expert_TLK.copy()
    least = trace.signals["router_probs_TLE"][4, 1].argmin()
    wrong_TLK[4, 1, 0] = least
    with pytest.raises(TraceError, match=rf"row 4, layer 1.*expert {least}"):
        replace(trace, expert_TLK=wrong_TLK).validate("wrong")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_text_again_takes_the_same_routes(make_model: MakeModel, family: str) -> None:
    """Fed the recorded tokens instead of choosing its own, the model repeats every array."""
    model = make_model(family)
    first = record_all(model)
    tokens = [first.signals["token_T"][first.request_T == number] for number in range(3)]
    forced = [
        Request(prompt=prompt, task=task, forced=[*of_request[len(prompt) :].tolist(), 0])
        for prompt, of_request, task in zip(PROMPTS, tokens, first.task_R, strict=True)
    ]
    again = record(model, forced, SAMPLING, ORIGIN, signals=tuple(SPECS), horizons=2)
    assert again.header.teacher_forced
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name], err_msg=name)


def test_one_forward_pass_over_the_whole_text_agrees(make_model: MakeModel) -> None:
    """Routes taken step by step through the cache are those of the text read at once."""
    model = make_model("Qwen3Moe")
    trace = record_all(model)
    text = trace.signals["token_T"][trace.request_T == 0]
    chosen: list[Any] = []
    for layer in find_moe(model).layers:
        layer.router.register_forward_hook(
            lambda module, inputs, output: chosen.append(output[2])  # noqa: ARG005 - torch's signature
        )
    with torch.no_grad():
        model(torch.tensor(text[None].astype(np.int64)))
    at_once_TLK = torch.stack(chosen, dim=1).numpy()
    np.testing.assert_array_equal(at_once_TLK, trace.expert_TLK[trace.request_T == 0])


def test_the_same_seed_gives_the_same_trace(make_model: MakeModel) -> None:
    """Equal seeds give equal traces, and another seed another text."""
    model = make_model("Mixtral")
    other = replace(SAMPLING, seed=4)
    assert record_all(model).content_hash() == record_all(model).content_hash()
    tokens = record_all(model).signals["token_T"].tolist()
    assert tokens != record_all(model, sampling=other).signals["token_T"].tolist()


def test_a_request_does_not_depend_on_those_before_it(make_model: MakeModel) -> None:
    """Recorded alone, greedy, the last request has the rows it has among others."""
    model = make_model("Olmoe")
    greedy = Sampling(new_tokens=6, ignore_eos=True)
    together = record_all(model, sampling=greedy)
    alone = record(model, [Request(prompt=PROMPTS[2])], greedy, ORIGIN)
    np.testing.assert_array_equal(alone.expert_TLK, together.expert_TLK[together.request_T == 2])


def test_look_ahead_is_another_layers_router_on_this_layers_residual(
    make_model: MakeModel,
) -> None:
    """Recomputed by hand from the hidden state after attention, ids and scores are the same."""
    model = make_model("Mixtral")
    layers = find_moe(model).layers
    trace = record_all(model)
    residual: list[Any] = []
    handle = layers[0].norm.register_forward_pre_hook(lambda module, args: residual.append(args[0]))  # noqa: ARG005 - torch's signature
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]))
        handle.remove()
        for horizon in (1, 2):
            normed = layers[horizon].norm(residual[0])
            probs_TE = layers[horizon].router(normed)[0].softmax(dim=-1)
            best = probs_TE.topk(4, dim=-1)
            found_TM = trace.signals["look_in_TLHM"][:7, 0, horizon - 1]
            np.testing.assert_array_equal(best.indices.numpy(), found_TM)
            score_TM = trace.signals["look_in_score_TLHM"][:7, 0, horizon - 1]
            np.testing.assert_allclose(best.values.numpy(), score_TM, atol=1e-3)


def test_look_out_starts_at_the_layers_output_and_wraps(make_model: MakeModel) -> None:
    """After the last layer it asks the first layers, with the last layer's output."""
    model = make_model("Olmoe")
    layers = find_moe(model).layers
    trace = record_all(model)
    outputs: list[Any] = []
    handle = layers[2].decoder_layer.register_forward_hook(
        lambda module, args, output: outputs.append(output)  # noqa: ARG005 - torch's signature
    )
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]))
        handle.remove()
        for horizon, target in ((1, 0), (2, 1)):
            probs_TE = layers[target].router(layers[target].norm(outputs[0]))[0].softmax(dim=-1)
            best = probs_TE.topk(6, dim=-1)
            found_TM = trace.signals["look_out_TLHM"][:7, 2, horizon - 1]
            np.testing.assert_array_equal(best.indices.numpy(), found_TM)
            score_TM = trace.signals["look_out_score_TLHM"][:7, 2, horizon - 1]
            np.testing.assert_allclose(best.values.numpy(), score_TM, atol=1e-3)


def test_hidden_states_are_the_residual_after_attention(make_model: MakeModel) -> None:
    """Each row of a layer is what goes into its post-attention norm, in float16."""
    model = make_model("Qwen3Moe")
    trace = record_all(model)
    seen: list[Any] = []
    norm = find_moe(model).layers[1].norm
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # noqa: ARG005 - torch's signature
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]))
    np.testing.assert_allclose(
        seen[0][0].numpy(), trace.signals["hidden_TLD"][:7, 1], rtol=2e-3, atol=2e-3
    )


def test_embeddings_are_means_over_the_step(make_model: MakeModel) -> None:
    """Prompt rows carry the prompt's mean, decode rows their own token's embedding."""
    model = make_model("Qwen3Moe")
    trace = record_all(model)
    table = model.get_input_embeddings().weight.detach().numpy()
    of_prompt = table[list(PROMPTS[0])].mean(axis=0)
    np.testing.assert_allclose(trace.signals["embedding_TD"][3], of_prompt, rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(
        trace.signals["prompt_embedding_RD"][0], of_prompt, rtol=1e-2, atol=2e-3
    )
    own = table[trace.signals["token_T"][8]]
    np.testing.assert_allclose(trace.signals["embedding_TD"][8], own, rtol=1e-2, atol=2e-3)


def test_generation_ends_at_the_end_of_text(make_model: MakeModel) -> None:
    """The end token is the last; it is counted as output and not fed back."""
    model = make_model("Mixtral")
    greedy = Sampling(new_tokens=6, ignore_eos=True)
    free = record(model, [Request(prompt=PROMPTS[0])], greedy, ORIGIN, signals=("token",))
    model.generation_config.eos_token_id = [299, int(free.signals["token_T"][8])]
    ended = record(model, [Request(prompt=PROMPTS[0])], Sampling(new_tokens=6), ORIGIN)
    assert ended.output_tokens_R[0] == 2
    assert ended.tokens == 8


def test_hooks_are_gone_afterwards(make_model: MakeModel) -> None:
    """A recording leaves the model as it was, also when it fails."""
    model = make_model("Mixtral")
    record_all(model)
    with pytest.raises(ModelError, match="exceed the model's context of 128"):
        record_all(model, sampling=Sampling(new_tokens=500))
    assert (
        sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        )
        == 0
    )


def test_a_router_that_is_not_known_gives_no_probabilities(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids and gates are recorded all the same; signals that need its rule are refused by name."""
    monkeypatch.delitem(
        __import__("moesim.backends.models", fromlist=["ROUTERS"]).ROUTERS, "MixtralTopKRouter"
    )
    model = make_model("Mixtral")
    plain = record(model, [Request(prompt=PROMPTS[0])], SAMPLING, ORIGIN)
    plain.validate("plain")
    assert plain.header.selection is None
    with pytest.raises(ModelError, match=r"MixtralTopKRouter.*leave router_probs"):
        record_all(model)


def test_look_ahead_is_refused_where_the_router_reads_something_else(
    make_model: MakeModel,
) -> None:
    """A layer whose norm does not feed its router is noticed in the first step."""
    model = make_model("Mixtral")
    layer = find_moe(model).layers[1].decoder_layer
    layer.mlp.register_forward_pre_hook(lambda module, args: (args[0] * 3,))  # noqa: ARG005 - torch's signature
    with pytest.raises(ModelError, match="layer 1's router does not read"):
        record_all(model)
