"""Links that several engines share: fair shares by hand, by their definition, and ns by ns."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.costs import CostModel
from moesim.simulator.engines.machine import Ends, Server, Span
from moesim.simulator.gpus.hands import Exchange, limits_back
from moesim.simulator.gpus.shared_links import Flow, Limit, SharedEngine, SharedLinks, fair_rates

GB_PER_S = 10**9
MB = 10**6


class Job(NamedTuple):
    """A copy: its bytes, what it takes alone beside its latency, and when it is handed over."""

    size: int
    flow_ns: int
    issued_ns: int = 0


def links_of(
    jobs_by_engine: Sequence[Sequence[Job]],
    limits: Sequence[tuple[set[int], int]],
    latency_ns: int = 0,
) -> tuple[SharedLinks, Ends, list[Span]]:
    """Return shared links with jobs in their queues; the number of a job says engine and turn."""
    ends: Ends = {}
    waiting: list[Server] = []
    spans: list[Span] = []

    def times(jobs: Sequence[Job]) -> Callable[[int, int], int]:
        known = {job.size: job.flow_ns for job in jobs} | {0: 0}
        return lambda size, idle_ns: latency_ns + known[size] + 0 * idle_ns

    engines = [
        SharedEngine(f"h2d {gpu}", times(jobs), ends, waiting, spans)
        for gpu, jobs in enumerate(jobs_by_engine)
    ]
    for gpu, jobs in enumerate(jobs_by_engine):
        for turn, job in enumerate(jobs):
            engines[gpu].submit(100 * gpu + turn, f"{gpu}.{turn}", job.size, job.issued_ns)
    return SharedLinks(engines, [Limit(frozenset(g), most) for g, most in limits]), ends, spans


def run(links: SharedLinks) -> None:
    """Let everything happen."""
    while links.next_event_ns() is not None:
        links.step()


@pytest.mark.parametrize("users", [1, 2, 4])
def test_doubling_the_users_halves_each_share(users: int) -> None:
    """One megabyte at 10 GB/s takes 100 µs alone, 200 with two users, 400 with four: exactly."""
    copies = [[Job(MB, 100_000)]] * users
    links, ends, _ = links_of(copies, [(set(range(users)), 10 * GB_PER_S)])
    run(links)
    assert {100 * gpu: 100_000 * users for gpu in range(users)} == ends


def test_a_latecomer_halves_the_rest_alone() -> None:
    """A copy alone for 40 µs has 60 left, which take 120 beside another, which then is alone."""
    links, ends, _ = links_of(
        [[Job(MB, 100_000)], [Job(MB, 100_000, 40_000)]], [({0, 1}, 10 * GB_PER_S)]
    )
    run(links)
    assert ends == {0: 160_000, 100: 200_000}


def test_who_wants_less_leaves_the_rest_to_the_others() -> None:
    """Of 12 GB/s, 2 go to a link that wants 2, and 5 to each of two that want 10."""
    assert fair_rates({0: 10, 1: 2, 2: 10}, [Limit(frozenset({0, 1, 2}), 12)]) == {
        0: 5,
        1: 2,
        2: 5,
    }
    links, ends, _ = links_of(
        [[Job(MB, 100_000)], [Job(MB // 5, 100_000)], [Job(MB, 100_000)]],
        [({0, 1, 2}, 12 * GB_PER_S)],
    )
    run(links)
    # 5 GB/s each until the second ends at 100 µs, 0.5 MB left; then 6 each: 83 333.3 ns more.
    assert ends == {0: 183_334, 100: 100_000, 200: 183_334}


def test_a_switch_and_what_is_above_it_both_bind() -> None:
    """Two behind a switch of 8 get 4 each; the third gets the 6 that a host of 14 leaves."""
    limits = [Limit(frozenset({0, 1}), 8), Limit(frozenset({0, 1, 2}), 14)]
    assert fair_rates({0: 10, 1: 10, 2: 10}, limits) == {0: 4, 1: 4, 2: 6}


def test_latencies_do_not_use_the_link() -> None:
    """While one copy waits out its latency of 30 µs the other has the link to itself."""
    links, ends, _ = links_of(
        [[Job(MB, 100_000)], [Job(MB, 100_000, 70_000)]],
        [({0, 1}, 10 * GB_PER_S)],
        latency_ns=30_000,
    )
    run(links)
    # The first flows from 30 to 100 µs alone, then both at half: 30 left take 60.
    assert ends == {0: 160_000, 100: 230_000}


wants = st.dictionaries(st.integers(0, 4), st.integers(1, 60), min_size=1)
some_limits = st.lists(
    st.tuples(st.frozensets(st.integers(0, 4), min_size=1), st.integers(5, 120)), max_size=3
)


@given(wants, some_limits)
def test_rates_are_max_min_fair(
    wanted: dict[int, int], limits: list[tuple[frozenset[int], int]]
) -> None:
    """No limit is exceeded, and who gets less than he wants gets the most of some full one."""
    rates = fair_rates(wanted, [Limit(*limit) for limit in limits])
    assert rates.keys() == wanted.keys()
    for members, most in limits:
        assert sum(rates[engine] for engine in members & rates.keys()) <= most
    for engine, rate in rates.items():
        assert 1 <= rate <= wanted[engine]
        if rate == wanted[engine]:
            continue
        binding = [
            members
            for members, most in limits
            if engine in members
            and most - sum(rates[user] for user in members & rates.keys()) < len(members)
            and rate >= max(rates[user] for user in members & rates.keys())
        ]
        assert binding, f"{engine} could have more"


jobs_of_an_engine = st.lists(
    st.builds(Job, st.sampled_from([3, 5, 8]), st.integers(1, 6), st.integers(0, 12)), max_size=3
)


def by_the_ns(
    jobs_by_engine: Sequence[Sequence[Job]],
    limits: Sequence[tuple[set[int], int]],
    latency_ns: int,
) -> Ends:
    """Return when each job ends, from a clock that ticks every ns."""
    ends: Ends = {}
    turn = [0] * len(jobs_by_engine)
    flows_ns: list[int | None] = [None] * len(jobs_by_engine)
    left = [0] * len(jobs_by_engine)
    for now_ns in range(2_000):
        for _ in range(9):  # as many copies of no time as there may be
            for gpu, jobs in enumerate(jobs_by_engine):
                flowing = flows_ns[gpu]
                if flowing is not None and now_ns >= flowing and left[gpu] <= 0:
                    ends[100 * gpu + turn[gpu]] = now_ns
                    turn[gpu] += 1
                    flows_ns[gpu] = None
                if flows_ns[gpu] is None and turn[gpu] < len(jobs):
                    job = jobs[turn[gpu]]
                    if job.issued_ns <= now_ns:
                        flows_ns[gpu] = now_ns + latency_ns
                        left[gpu] = job.flow_ns * (job.size * GB_PER_S // job.flow_ns)
        flow = {}
        for gpu, jobs in enumerate(jobs_by_engine):
            begun = flows_ns[gpu]
            if begun is not None and begun <= now_ns:
                job = jobs[turn[gpu]]
                flow[gpu] = job.size * GB_PER_S // job.flow_ns
        for gpu, rate in fair_rates(flow, [Limit(frozenset(g), m) for g, m in limits]).items():
            left[gpu] -= rate
    return ends


@given(st.data())
def test_ends_are_those_of_a_clock_that_ticks_every_ns(data: st.DataObject) -> None:
    """Whatever queues, latencies and limits there are, going from event to event is exact."""
    draw = data.draw
    jobs_by_engine = []
    for _ in range(draw(st.integers(1, 4))):
        jobs = sorted(draw(jobs_of_an_engine), key=lambda job: job.issued_ns)
        flow_ns = {size: draw(st.integers(1, 6)) for size in (3, 5, 8)}
        jobs_by_engine.append([job._replace(flow_ns=flow_ns[job.size]) for job in jobs])
    everyone = set(range(len(jobs_by_engine)))
    limits = [(everyone, draw(st.integers(1, 6)) * GB_PER_S)]
    if draw(st.booleans()):
        limits.append(({0}, draw(st.integers(1, 6)) * GB_PER_S // 2))
    latency_ns = draw(st.integers(0, 3))
    links, ends, spans = links_of(jobs_by_engine, limits, latency_ns)
    run(links)
    assert by_the_ns(jobs_by_engine, limits, latency_ns) == ends
    for gpu, engine in enumerate(links.engines):
        mine = [(begin, end) for track, _, begin, end in spans if track == f"h2d {gpu}"]
        assert engine.work == sum(job.size for job in jobs_by_engine[gpu])
        assert engine.busy_ns == sum(end - begin for begin, end in mine)
        assert all(one[1] <= other[0] for one, other in pairwise(mine))


@given(st.data())
def test_a_link_without_end_is_as_many_links(data: st.DataObject) -> None:
    """Under a limit that never binds each engine ends its jobs when an engine alone would."""
    jobs_by_engine = [[Job(5, 4, data.draw(st.integers(0, 9))) for _ in range(3)] for _ in range(3)]
    jobs_by_engine = [sorted(jobs, key=lambda job: job.issued_ns) for jobs in jobs_by_engine]
    links, ends, _ = links_of(jobs_by_engine, [({0, 1, 2}, 10**15)], latency_ns=2)
    run(links)
    for gpu, jobs in enumerate(jobs_by_engine):
        alone: Ends = {}
        engine = Server("alone", lambda size, _: 2 + 4 * (size > 0), alone, [], None)
        for turn, job in enumerate(jobs):
            engine.submit(100 * gpu + turn, "", job.size, job.issued_ns)
        assert {n: end for n, end in ends.items() if n // 100 == gpu} == alone


def activations(users: int) -> Ends:
    """Return when activations of as many GPUs are where they go, sent at once through the host.

    Each is 1 MB: 10 µs of latency, 100 to the host's memory at the 10 GB/s that all get together,
    50 on to another GPU.
    """
    ends: Ends = {}
    waiting: list[Server] = []
    engines = [
        Exchange(f"exchange {gpu}", lambda ns, _: ns, ends, waiting, None) for gpu in range(users)
    ]
    for gpu, engine in enumerate(engines):
        engine.flows[gpu] = Flow(MB, 10_000, 100_000, 100_000, 50_000)
        engine.submit(gpu, "activations", 160_000, 0)
    run(SharedLinks(engines, [Limit(frozenset(range(users)), 10 * GB_PER_S)]))
    return ends


@pytest.mark.parametrize("users", [1, 2, 4])
def test_doubling_the_users_of_the_way_back_halves_each_share(users: int) -> None:
    """The way to the host takes 100, 200, 400 µs; latency and the way on are nobody else's."""
    assert activations(users) == dict.fromkeys(range(users), 60000 + 100000 * users)


def test_a_profile_says_what_links_share_on_the_way_back() -> None:
    """A switch that carries less back than its links can binds; one that nobody fills does not."""
    costs = [
        CostModel.for_tests(machine={"gpus": 4, "shared_back": [([0, 1, 2, 3], most * GB_PER_S)]})
        for most in (20, 40)
    ]
    found = [limits_back(one, gpus) for one in costs for gpus in (4, 2)]
    assert found == [[Limit(frozenset(range(4)), 20 * GB_PER_S)], [], [], []]
