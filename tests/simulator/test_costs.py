"""Costs: hand-computed on round numbers, and the anchors that the design measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hardware_profiles import load, load_runtime, names, runtime_names
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator import models
from moesim.simulator.costs import LOOK_IN, CostModel, to_ns
from moesim.simulator.models import CostLayer, CostShape

MB = 1_000_000


def shape_of(layer: CostLayer, window_tokens: int | None = None) -> CostShape:
    """Return a model of one such layer."""
    return CostShape(
        name="one layer",
        layers=(layer,),
        experts=4,
        top_k=2,
        hidden=1_000,
        head_bytes=0,
        head_flops_per_token=0,
        resident_bytes=layer.dense_bytes,
        window_tokens=window_tokens,
    )


def on(machine: str, runtime: str, model: str, form: str = "bf16") -> CostModel:
    """Return the costs of a shipped model on a shipped machine."""
    return CostModel(load(machine), load_runtime(runtime), models.load(model).cost_shape(form))


def test_durations_round_half_to_even_and_never_below_zero() -> None:
    """One function takes floats into the clock."""
    assert [to_ns(value) for value in (0.5, 1.5, 2.5, 3.5, -2.0)] == [0, 2, 2, 4, 0]


def test_a_copy_is_latency_plus_bytes_over_bandwidth() -> None:
    """At 10 GB/s and 5 µs: 1 MB takes 100 + 5 µs, nothing takes 5 µs."""
    costs = CostModel.for_tests()
    assert costs.copy_ns(MB) == 105_000
    assert 105_000 == costs.copy_ns(MB, "d2h") == costs.copy_ns(MB, "peer")
    assert costs.copy_ns(0) == 5_000
    assert costs.copy_ns(MB, "nvme") == 100_000 + 1_000_000


@given(nbytes=st.integers(min_value=1, max_value=10**10))
def test_twice_the_bytes_take_twice_the_time_apart_from_latency(nbytes: int) -> None:
    """Scaling an expert scales its copy."""
    costs = CostModel.for_tests()
    once, twice = costs.copy_ns(nbytes) - 5_000, costs.copy_ns(2 * nbytes) - 5_000
    assert abs(twice - 2 * once) <= 1


def test_half_the_bandwidth_takes_twice_the_time() -> None:
    """The link's rate matters, not only its size."""
    slow = CostModel.for_tests(machine={"link_bytes_per_s": 5 * 10**9})
    assert slow.copy_ns(MB) == 200_000 + 5_000


def test_small_copies_pay_the_latency_of_each() -> None:
    """A thousand copies of 1 kB take 51 times as long as one of 1 MB less its latency."""
    costs = CostModel.for_tests()
    assert 1_000 * costs.copy_ns(1_000) == 1_000 * (100 + 5_000)
    assert 1_000 * costs.copy_ns(1_000) - costs.copy_ns(MB) == 999 * 5_000


def test_an_expert_in_pieces_pays_once_per_piece() -> None:
    """Three tensors are three copies, three latencies, three overheads and three issues."""
    runtime = {"pieces_per_expert": 3, "copy_overhead_ns": 1_000, "event_ns": 500}
    costs = CostModel.for_tests(runtime=runtime)
    assert costs.copy_ns(3 * MB) == 300_000 + 3 * 5_000 + 3 * 1_000
    assert costs.copy_issue_ns(2) == 2 * (3 * 2_000 + 500)
    assert costs.copy_ns(3 * MB, "d2h") == 300_000 + 5_000


def test_the_first_copy_after_a_pause_takes_longer() -> None:
    """The extra is paid once, and only to the GPU."""
    costs = CostModel.for_tests()
    assert costs.copy_ns(MB, idle_ns=10**9) == 305_000
    assert costs.copy_ns(MB, "d2h", idle_ns=10**9) == 105_000
    assert costs.pause_threshold_ns == 100_000_000


def test_a_copy_starts_late_where_the_engine_stood_still() -> None:
    """What is handed to a busy engine starts at once; after a pause both are paid."""
    costs = CostModel.for_tests(runtime={"copy_start_ns": 7_000})
    assert costs.copy_ns(MB) == 105_000
    assert costs.copy_ns(MB, idle_ns=1) == 112_000
    assert costs.copy_ns(MB, idle_ns=10**9) == 312_000


def test_a_copy_from_another_gpu_starts_late_too() -> None:
    """An engine between GPUs takes as long to start; no link has gone to sleep there."""
    machine = {"peer_bytes_per_s": 2 * 10**10, "peer_latency_ns": 5_000}
    costs = CostModel.for_tests(machine=machine, runtime={"copy_start_ns": 7_000})
    assert costs.copy_ns(MB, "peer") == 55_000
    assert costs.copy_ns(MB, "peer", idle_ns=1) == 62_000
    assert costs.copy_ns(MB, "peer", idle_ns=10**9) == 62_000


def test_pageable_memory_is_copied_at_its_own_rate_and_blocks() -> None:
    """A runtime that does not pin gets 1 GB/s here, and its host waits."""
    costs = CostModel.for_tests(runtime={"source": "pageable", "blocking": True})
    assert costs.copy_ns(MB) == 1_000_000 + 5_000
    assert costs.copies_block_host


def test_a_link_that_is_not_there_is_named() -> None:
    """No NVLink and no disk on this machine."""
    costs = on("h100-sxm", "moesim-graph", "olmoe")
    with pytest.raises(ValueError, match=r"'h100-sxm' has no peer copies; add link\.peer"):
        costs.copy_ns(MB, "peer")
    with pytest.raises(ValueError, match="'h100-sxm' has no nvme copies; add nvme"):
        costs.copy_ns(MB, "nvme")


def test_experts_take_the_longer_of_reading_and_computing() -> None:
    """1 MB at 1 TB/s is 1 µs; 1 MFLOP a token at 1 PFLOP/s is 1 ns a token."""
    layer = CostLayer(MB, MB, 0, 0)
    costs = CostModel(round_machine(), round_runtime(), shape_of(layer))
    assert 1_000 == costs.experts_gpu_ns(0, [1]) == costs.experts_gpu_ns(0, [1_000])
    assert costs.experts_gpu_ns(0, [2_000]) == 2_000
    assert costs.experts_gpu_ns(0, [1, 2_000, 1_500]) == 1_000 + 2_000 + 1_500
    assert 0 == costs.experts_gpu_ns(0, []) == costs.experts_gpu_ns(0, [0])


def test_the_runtime_multiplies_kernels_and_adds_to_each_run() -> None:
    """Twice the floor, and 7 µs per run however many experts."""
    costs = CostModel.for_tests(runtime={"kernel_multiple": 2.0, "expert_fixed_ns": 7_000})
    assert costs.experts_gpu_ns(0, [1, 1]) == 7_000 + 2 * 2_000


@given(
    tokens=st.lists(st.integers(min_value=1, max_value=4_096), max_size=8), cut=st.integers(0, 8)
)
def test_splitting_a_run_costs_one_launch_more_and_nothing_else(
    tokens: list[int], cut: int
) -> None:
    """Waves of one demand add up exactly."""
    costs = CostModel.for_tests(runtime={"expert_fixed_ns": 300})
    both = costs.experts_gpu_ns(0, tokens[:cut]) + costs.experts_gpu_ns(0, tokens[cut:])
    assert costs.experts_gpu_ns(0, tokens) + 300 == both


def test_part_of_an_expert_takes_part_of_its_time() -> None:
    """A quarter of two experts is half an expert."""
    costs = CostModel.for_tests()
    assert costs.experts_gpu_ns(0, [1, 1], part_ppm=250_000) == 500


def test_attention_reads_weights_and_cache_and_multiplies_pairs() -> None:
    """500 kB of weights, 1 kB a position, 1 MFLOP a pair."""
    layer = CostLayer(MB, 0, 500_000, 0, kv_bytes_per_token=1_000, attention_flops_per_pair=MB)
    costs = CostModel(round_machine(), round_runtime(), shape_of(layer))
    assert costs.attention_ns(0, 1, 100) == 500 + 100
    assert costs.attention_ns(0, 4, 400, requests=4) == 500 + 4 * 100
    assert costs.layer_ns(0) == 500 + 512
    # A prompt of 1000 has 1000 * 1001 / 2 pairs: 500,500 ns of products beat 1000 of reading.
    assert costs.attention_ns(0, 1_000, 1_000) == 500 + 500_500
    # Ten more tokens after it see 1010 positions but for those after them.
    assert costs.attention_ns(0, 10, 1_010) == 500 + 10 * 1_010 - 45


def test_the_dense_part_is_bound_by_products_for_many_tokens() -> None:
    """1 MFLOP a token: 500 tokens take as long as reading 500 kB."""
    costs = CostModel(
        round_machine(),
        round_runtime(dense_fixed_ns=9_000),
        shape_of(CostLayer(MB, 0, 500_000, MB)),
    )
    assert 9_500 == costs.attention_ns(0, 1, 1) == costs.attention_ns(0, 500, 500)
    assert costs.attention_ns(0, 1_000, 1_000) == 10_000


def test_a_window_ends_the_growth_with_context() -> None:
    """Beyond 128 positions a windowed layer reads no more, request by request."""
    layer = CostLayer(MB, 0, 0, 0, windowed_kv_bytes_per_token=1_000, windowed_flops_per_pair=1)
    costs = CostModel(round_machine(), round_runtime(), shape_of(layer, window_tokens=128))
    assert costs.attention_ns(0, 1, 100) == 100
    assert 128 == costs.attention_ns(0, 1, 128) == costs.attention_ns(0, 1, 100_000)
    assert costs.attention_ns(0, 2, 100_000, requests=2) == 2 * 128


def test_memory_of_contexts_is_bounded() -> None:
    """A long trace meets any number of contexts; answers stay right."""
    costs = CostModel.for_tests()
    times = [costs.attention_ns(0, 1, context) for context in range(10_000)]
    assert {500} == set(times)
    assert len(costs._attention_memos[0]) <= 4_096


def test_a_cpu_expert_pays_the_round_trip_of_its_activations() -> None:
    """Hand over 3, activations out and back 2 x (5 + 0.2), 1 MB at 100 GB/s 10, notice 2 µs."""
    layer = CostLayer(MB, 2 * MB, 0, 0)
    costs = CostModel(round_machine(), round_runtime(), shape_of(layer))
    round_trip = 2 * (5_000 + 1_000 * 2 // 10)
    assert 3_000 + round_trip + 10_000 + 2_000 == costs.expert_cpu_ns(0, 1)
    assert costs.product_cpu_ns(0, 1) == 10_000
    assert costs.product_cpu_ns(0, 1, while_copying=True) == 20_000
    assert costs.product_cpu_ns(0, 100) == 2 * 100 * 1_000


def test_several_cpu_experts_share_one_round_trip() -> None:
    """Products one after the other; handing over, latencies and notice once."""
    costs = CostModel(round_machine(), round_runtime(), shape_of(CostLayer(MB, 2 * MB, 0, 0)))
    alone = costs.expert_cpu_ns(0, 1)
    both = costs.experts_cpu_ns(0, [1, 1])
    assert both == 3_000 + 2 * (5_000 + 2 * 1_000 * 2 // 10) + 2 * 10_000 + 2_000
    assert 2 * alone - both == 3_000 + 2 * 5_000 + 2_000


def test_a_runtime_without_cpu_experts_says_so() -> None:
    """The message names the runtime and the way out."""
    costs = on("rtx4090", "accelerate", "olmoe")
    with pytest.raises(ValueError, match="runtime 'accelerate' computes no experts on the CPU"):
        costs.expert_cpu_ns(0, 1)


def test_host_costs_are_those_of_the_runtime() -> None:
    """Launches, waits, polls and issues come from the file unchanged."""
    costs = CostModel.for_tests(runtime={"event_ns": 100})
    assert (costs.launch_layer_ns, costs.sync_ns, costs.poll_ns) == (10_000, 4_000, 1_000)
    assert costs.launch_run_ns(3) == 5_000 + 100 + 3 * 1_000
    assert costs.copy_issue_ns(4) == 4 * (2_000 + 100)
    assert costs.window_bytes == 16 * 2**20
    assert costs.workspace_bytes == 2**30
    assert costs.decides_on == "host"


def test_a_decision_costs_by_experts_and_commands() -> None:
    """1 µs, 100 ns an expert, 10 ns a command, for a system without a row of its own."""
    assert CostModel.for_tests().decision_ns("lru", 8, 3) == 1_000 + 8 * 100 + 3 * 10


def test_a_system_with_a_row_of_its_own_costs_what_the_row_says() -> None:
    """The default is for the others alone."""
    runtime = round_runtime()
    dear = round_runtime(decision_ns=(9_000, 0, 0)).decisions.default
    table = runtime.decisions.model_copy(update={"systems": {"finemoe": dear}})
    costs = CostModel(
        round_machine(),
        runtime.model_copy(update={"decisions": table}),
        shape_of(CostLayer(MB, 0, 0, 0)),
    )
    assert costs.decision_ns("finemoe", 8, 3) == 9_000
    assert costs.decision_ns("lru", 8, 3) == 1_830


def test_kernels_are_slower_while_copies_run() -> None:
    """5 % here, in integer ppm."""
    costs = CostModel.for_tests()
    assert costs.slowed_ns(100_000) == 105_000
    assert costs.slowed_ns(10) == 10


def test_fp8_computes_at_its_own_peak_where_there_is_one() -> None:
    """Ada has FP8 units, Ampere computes in 16 bits; both read half the bytes."""
    many = [100_000]
    for machine, ratio in (("rtx4090", 0.5), ("rtx3090", 1.0)):
        half = on(machine, "moesim-graph", "mixtral-8x7b", "fp8").experts_gpu_ns(0, many)
        full = on(machine, "moesim-graph", "mixtral-8x7b", "bf16").experts_gpu_ns(0, many)
        assert pytest.approx(ratio, rel=0.01) == half / full
        one = on(machine, "moesim-graph", "mixtral-8x7b", "fp8").experts_gpu_ns(0, [1])
        both = on(machine, "moesim-graph", "mixtral-8x7b", "bf16").experts_gpu_ns(0, [1])
        none = on(machine, "moesim-graph", "mixtral-8x7b", "bf16").experts_gpu_ns(0, [0])
        assert pytest.approx(0.5, rel=0.01) == (one - none) / (both - none)


@pytest.mark.parametrize("machine", names())
@pytest.mark.parametrize("runtime", runtime_names())
@pytest.mark.parametrize("model", models.names())
def test_everything_that_ships_fits_together(machine: str, runtime: str, model: str) -> None:
    """Any model on any machine under any runtime has positive costs and a band."""
    shape = models.load(model).cost_shape()
    costs = CostModel(load(machine), load_runtime(runtime), shape)
    expert_bytes = shape.layers[0].expert_bytes
    times = [
        costs.copy_ns(expert_bytes),
        costs.attention_ns(0, 1, 1_000),
        costs.experts_gpu_ns(0, [1] * shape.top_k),
        costs.head_ns(1),
        costs.launch_run_ns(shape.top_k),
    ]
    assert [time > 0 for time in times] == [True] * 5
    assert costs.copy_ns(expert_bytes) > costs.experts_gpu_ns(0, [1]) - costs.experts_gpu_ns(0, [0])
    measured = {"h100-sxm-measured", "h100-sxm-x2", "h200-sxm-measured"}
    is_measured = machine in measured and runtime == "moesim-graph"
    assert costs.evidence == "estimated"  # on these as well: what comes between two copies
    assert costs.terms["dense"].evidence == ("measured" if is_measured else "estimated")
    assert 0 < costs.band < 1


def test_a_band_says_what_it_rests_on() -> None:
    """Copies on the H100 are known to 6 %, its kernels and host less well."""
    terms = on("h100-sxm", "moesim-graph", "mixtral-8x7b").terms
    assert list(terms) == ["copy", "dense", "experts", "head", "host", "cpu"]
    assert 0.05 < terms["copy"].band < 0.07
    assert terms["copy"].band < terms["host"].band
    assert "link.h2d.bandwidth (moesim design notes" in terms["copy"].explain()
    assert "cpu" not in on("h100-sxm", "accelerate", "mixtral-8x7b").terms


def test_guessed_bytes_widen_the_band_of_kernels_alone() -> None:
    """A trace's bytes say nothing of products or KV cache, but all about copies."""
    costs = CostModel.for_tests()
    assert {name: term.band for name, term in costs.terms.items()} == {
        "copy": 0.0,
        "dense": 0.25,
        "experts": 0.25,
        "head": 0.25,
        "host": 0.0,
        "cpu": 0.0,
    }
    assert costs.evidence_for({"copy": 5, "host": 1}) == "datasheet"
    assert costs.evidence_for({"copy": 5, "dense": 1}) == "estimated"


# The anchors of the design. The shipped estimates were derived from them, so these tests show that
# the derivation holds, not that the model predicts.


def token_ns(costs: CostModel, *, copies_per_layer: int = 0) -> int:
    """Return one decode step by a model of two clocks, host and GPU; copies block the host."""
    chosen = costs.shape.top_k
    host_ns = gpu_ns = 0
    for layer in range(len(costs.shape.layers)):
        host_ns += costs.launch_layer_ns
        gpu_ns = max(gpu_ns, host_ns) + costs.attention_ns(layer, 1, 100)
        host_ns = max(host_ns, gpu_ns) + costs.sync_ns + costs.poll_ns
        host_ns += costs.decision_ns("lru", chosen, 2)
        host_ns += copies_per_layer * costs.copy_ns(costs.shape.layers[layer].expert_bytes)
        host_ns += costs.launch_run_ns(chosen)
        gpu_ns = max(gpu_ns, host_ns) + costs.experts_gpu_ns(layer, [1] * chosen)
    return max(gpu_ns, host_ns + costs.launch_layer_ns) + costs.head_ns(1)


def first_layers(model: str, layers: int) -> CostShape:
    """Return a model of the shape of a shipped one, but with fewer layers."""
    shape = models.load(model).cost_shape("bf16")
    return shape.for_trace(layers=layers, experts=shape.experts, top_k=shape.top_k)


def test_resident_olmoe_takes_what_was_measured() -> None:
    """18.7 ms by the prototype's eager operators; 4.80 ms by our graphs in the calibration."""
    eager = on("h100-sxm", "hf-eager", "olmoe")
    assert pytest.approx(18.7, rel=0.02) == token_ns(eager) / 1e6
    graphs = on("h100-sxm-measured", "moesim-graph", "olmoe")
    assert pytest.approx(4.80, rel=0.02) == token_ns(graphs) / 1e6


def test_accelerate_takes_what_was_measured() -> None:
    """51.5 ms resident and 601 ms offloaded for four layers of Qwen3-30B."""
    shape = first_layers("qwen3-30b-a3b", layers=4)
    costs = CostModel(load("h100-sxm"), load_runtime("accelerate"), shape)
    assert pytest.approx(51.5, rel=0.02) == token_ns(costs) / 1e6
    assert pytest.approx(601, rel=0.02) == token_ns(costs, copies_per_layer=128) / 1e6


def test_copies_and_experts_take_what_was_measured() -> None:
    """174.9 + 1.3 µs for a Qwen3 expert, 36.4 µs for a run of eight, 128 µs for one of Mixtral."""
    qwen = on("h100-sxm-measured", "moesim-graph", "qwen3-30b-a3b")
    assert pytest.approx(176.2, rel=0.005) == qwen.copy_ns(9 * 2**20) / 1e3
    assert pytest.approx(36.4, rel=0.03) == qwen.experts_gpu_ns(0, [1] * 8) / 1e3
    mixtral = on("h100-sxm-measured", "moesim-graph", "mixtral-8x7b")
    assert pytest.approx(6.43, rel=0.02) == mixtral.copy_ns(336 * 2**20) / 1e6
    assert pytest.approx(0.128, rel=0.03) == mixtral.experts_gpu_ns(0, [1]) / 1e6


def test_moe_infinity_loses_a_third_of_a_millisecond_per_copy() -> None:
    """About half of the transfer of 17 MB at PCIe 4.0 speed."""
    ours = on("a6000", "moesim-graph", "qwen1.5-moe-a2.7b").copy_ns(17 * MB)
    theirs = on("a6000", "moe-infinity-oss", "qwen1.5-moe-a2.7b").copy_ns(17 * MB)
    between_ours_ns = 1_290
    assert theirs - ours == 330_000 - between_ours_ns
    assert pytest.approx(0.5, rel=0.1) == (theirs - ours) / ours


def with_runtime(costs: CostModel, section: str, **given: float) -> CostModel:
    """Return costs whose runtime has these figures more, in ns or as multiples."""
    part = getattr(costs.runtime, section)
    like = costs.runtime.launch.layer
    figures = {key: like.model_copy(update={"value": value}) for key, value in given.items()}
    runtime = costs.runtime.model_copy(update={section: part.model_copy(update=figures)})
    return CostModel(costs.profile, runtime, costs.shape)


def test_prompts_have_launch_costs_of_their_own_where_they_are_given() -> None:
    """Without them a prompt is launched at the cost of a decode step."""
    plain = CostModel.for_tests()
    assert plain.launch_run_ns(3, is_prompt=True) == plain.launch_run_ns(3) == 8_000
    assert plain.launch_prompt_layer_ns == plain.launch_layer_ns == 10_000
    given = CostModel.for_tests(
        runtime={
            "launch_prompt_layer_ns": 70_000,
            "launch_prompt_expert_ns": 2_000,
            "launch_prompt_run_ns": 50_000,
        }
    )
    assert given.launch_run_ns(3, is_prompt=True) == 56_000
    assert given.launch_run_ns(3) == 8_000
    assert given.launch_prompt_layer_ns == 70_000


def test_norms_and_repeated_heads_are_charged_to_the_families_that_have_them() -> None:
    """OLMoE normalises, Mixtral repeats its keys and values, Qwen3 does both."""
    for model, norms, repeats in (("olmoe", 1, 0), ("mixtral-8x7b", 0, 1), ("qwen3-30b-a3b", 1, 1)):
        plain = on("h100-sxm", "hf-eager", model)
        more = with_runtime(plain, "kernels", qk_norm=100_000, kv_repeat=20_000)
        extra_ns = more.attention_ns(0, 1, 128) - plain.attention_ns(0, 1, 128)
        assert extra_ns == norms * 100_000 + repeats * 20_000
    plain = on("h100-sxm", "hf-eager", "qwen3-30b-a3b")
    more = with_runtime(plain, "kernels", kv_repeat_multiple=4.0)
    extra_ns = more.attention_ns(0, 1, 1_000) - plain.attention_ns(0, 1, 1_000)
    read_bytes = 4 * 1_000 * 2 * 32 * 128 * 2
    assert pytest.approx(read_bytes / 3350e9 / 0.9 * 1e9, abs=2) == extra_ns


def test_products_that_bind_have_a_multiple_of_their_own() -> None:
    """Many tokens take the multiple of computing, one token that of reading."""
    plain = CostModel.for_tests()
    more = with_runtime(plain, "kernels", expert_compute_multiple=3.0)
    assert more.experts_gpu_ns(0, [1]) == plain.experts_gpu_ns(0, [1])
    many = [10**7]
    assert more.experts_gpu_ns(0, many) == 3 * plain.experts_gpu_ns(0, many)


def test_a_look_ahead_is_charged_to_runs_whose_policy_reads_it() -> None:
    """Other runs do not pay for it; their evidence does not rest on it."""
    plain = with_runtime(on("h100-sxm", "hf-eager", "olmoe"), "kernels", look_ahead=75_000)
    looking = plain.with_signals({LOOK_IN})
    assert plain.with_signals({"gates"}) is plain
    assert looking.attention_ns(0, 1, 128) - plain.attention_ns(0, 1, 128) == 75_000
    assert "look_ahead" not in plain.terms["dense"].explain()
