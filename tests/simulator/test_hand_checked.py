"""Twenty-eight accesses on a machine of round numbers, every event's time worked out by hand.

Two layers of four experts, top-2, seven decode tokens, a global LRU of five slots, residents first.
The tables were derived from the contract (design 4.1) with pencil arithmetic, not from the engine:

- deciding takes 1 000 ns + 100 for each choice + 10 for each command; handing a copy over 2 000, a
  run 5 000 + 1 000 for each expert, a layer's graph 10 000; reading a router 4 000 + a poll 1 000;
- a copy takes 105 000, attention 500, an expert 1 000, the head 1 000; nothing slows anything
  down.

The first layer, spelt out: the host tells the arrival (1 010), the step's begin (1 000) and
launches layer 0 (10 000): 12 010. Attention ends at 12 510, the choice is read at 17 510. Both
experts are absent: five commands (two copies, two runs, layer done) are decided by 18 760; the
copies are issued at 20 760 and 22 760, so the link carries expert 0 until 125 760 and expert 1
until 230 760; the runs are issued at 28 760 and 34 760 and begin when their copies have ended;
layer 1 is launched at 44 760 and its attention waits for the second run: 231 760.
"""

import numpy as np
import pytest

from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.host import Host
from moesim.simulator.ledger import check
from moesim.simulator.messages import Copy, Run
from moesim.simulator.policies.base import RunInfo
from moesim.simulator.registry import parse
from moesim.simulator.runs import ENGINES
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, TraceHeader

# T tokens, L MoE layers, K chosen.

CHOICES_TLK = [
    [[0, 1], [0, 1]],
    [[0, 2], [1, 3]],
    [[0, 1], [0, 3]],
    [[2, 3], [1, 3]],
    [[0, 2], [0, 1]],
    [[0, 2], [1, 2]],
    [[0, 2], [1, 2]],
]
SLOTS = 5
EXPERT_BYTES = 1_000_000

HOST = """
        0      1010  tell
     1010      2010  tell
     2010     12010  tell
    12510     17510  read
    17510     44760  decide
   232260    237260  read
   237260    264510  decide
   452510    457510  read
   457510    458520  tell
   458520    459520  tell
   459520    469520  tell
   470020    475020  read
   475020    500260  decide
   584760    589760  read
   589760    615000  decide
   700000    705000  read
   705000    706010  tell
   706010    707010  tell
   707010    717010  tell
   717510    722510  read
   722510    747750  decide
   832250    837250  read
   837250    862490  decide
   947490    952490  read
   952490    953500  tell
   953500    954500  tell
   954500    964500  tell
   965000    970000  read
   970000    997250  decide
  1184750   1189750  read
  1189750   1214990  decide
  1299990   1304990  read
  1304990   1306000  tell
  1306000   1307000  tell
  1307000   1317000  tell
  1317500   1322500  read
  1322500   1347740  decide
  1432240   1437240  read
  1437240   1462480  decide
  1547480   1552480  read
  1552480   1553490  tell
  1553490   1554490  tell
  1554490   1564490  tell
  1564990   1569990  read
  1569990   1588210  decide
  1588710   1593710  read
  1593710   1618950  decide
  1703950   1708950  read
  1708950   1709960  tell
  1709960   1710960  tell
  1710960   1720960  tell
  1721460   1726460  read
  1726460   1744680  decide
  1745180   1750180  read
  1750180   1768400  decide
  1769400   1774400  read
  1774400   1775410  tell
"""

H2D = """
    20760    125760  0
   125760    230760  1
   240510    345510  4
   345510    450510  5
   478260    583260  2
   593000    698000  7
   725750    830750  1
   840490    945490  4
   973250   1078250  2
  1078250   1183250  3
  1192990   1297990  5
  1325740   1430740  0
  1440480   1545480  4
  1596950   1701950  6
"""

GPU = """
    12010     12510  attention 0
   125760    126760  run [0]
   230760    231760  run [1]
   231760    232260  attention 1
   345510    346510  run [4]
   450510    451510  run [5]
   451510    452510  head
   469520    470020  attention 0
   484260    485260  run [0]
   583260    584260  run [2]
   584260    584760  attention 1
   599000    600000  run [5]
   698000    699000  run [7]
   699000    700000  head
   717010    717510  attention 0
   731750    732750  run [0]
   830750    831750  run [1]
   831750    832250  attention 1
   846490    847490  run [7]
   945490    946490  run [4]
   946490    947490  head
   964500    965000  attention 0
  1078250   1079250  run [2]
  1183250   1184250  run [3]
  1184250   1184750  attention 1
  1198990   1199990  run [7]
  1297990   1298990  run [5]
  1298990   1299990  head
  1317000   1317500  attention 0
  1331740   1332740  run [2]
  1430740   1431740  run [0]
  1431740   1432240  attention 1
  1446480   1447480  run [5]
  1545480   1546480  run [4]
  1546480   1547480  head
  1564490   1564990  attention 0
  1578210   1580210  run [0, 2]
  1588210   1588710  attention 1
  1602950   1603950  run [5]
  1701950   1702950  run [6]
  1702950   1703950  head
  1720960   1721460  attention 0
  1734680   1736680  run [0, 2]
  1744680   1745180  attention 1
  1758400   1760400  run [5, 6]
  1768400   1769400  head
"""

TOKEN_ENDS_NS = [457510, 705000, 952490, 1304990, 1552480, 1708950, 1774400]


def small_engine(name: str) -> tuple[Controller, Host]:
    """Return the controller and an engine of the example."""
    tokens = len(CHOICES_TLK)
    expert_TLK = np.array(CHOICES_TLK, np.int16)
    trace = RoutingTrace(
        header=TraceHeader(
            model="hand", layer_ids=(0, 1), experts=4, top_k=2, evidence="synthetic"
        ),
        expert_TLK=expert_TLK,
        gate_TLK=None,
        step_T=np.arange(1, tokens + 1, dtype=np.int32),
        request_T=np.zeros(tokens, np.int32),
        position_T=np.arange(tokens, dtype=np.int32),
        is_prefill_T=np.zeros(tokens, bool),
        task_R=("",),
        arrival_ns_R=np.zeros(1, np.int64),
        prompt_tokens_R=np.zeros(1, np.int32),
        output_tokens_R=np.full(1, tokens + 1, np.int32),
    )
    costs = CostModel.for_tests(machine={"slow_down_ppm": 0})
    budget_bytes = SLOTS * EXPERT_BYTES
    run = RunInfo(2, 4, 2, (EXPERT_BYTES,) * 2, budget_bytes, costs, np.random.default_rng(0))
    controller = Controller(
        run,
        parse("cache", "lru").build(run),
        parse("prefetch", "none").build(run),
        parse("schedule", "resident_first").build(run),
    )
    engine = ENGINES[name](
        controller,
        Workload(trace),
        costs,
        expert_bytes=lambda _expert, _part: EXPERT_BYTES,
        budget_bytes=budget_bytes,
        keep_spans=True,
    )
    return controller, engine


def name_of(label: object) -> str:
    """Return what the tables call a job."""
    if isinstance(label, Copy):
        return str(label.expert)
    if isinstance(label, Run):
        return f"run {list(label.experts)}"
    return f"attention {label}" if isinstance(label, int) else str(label)


def rows_of(table: str) -> list[tuple[int, int, str]]:
    """Return the rows of a table: begin, end, what."""
    parts = (line.split(maxsplit=2) for line in table.strip().splitlines())
    return [(int(begin), int(end), what) for begin, end, what in parts]


@pytest.mark.parametrize("name", ENGINES)
def test_every_event_has_the_time_worked_out_by_hand(name: str) -> None:
    """Host, link and GPU do what the tables say, to the nanosecond."""
    controller, engine = small_engine(name)
    timings = engine.run()
    controller.close()
    assert engine.spans is not None
    for server, table in (("h2d", H2D), ("gpu", GPU)):
        spans = [
            (begin, end, name_of(what)) for at, what, begin, end in engine.spans if at == server
        ]
        assert spans == rows_of(table)
    host = [(begin, end) for at, _, begin, end in engine.spans if at == "host"]
    assert host == [(begin, end) for begin, end, _ in rows_of(HOST)]
    assert timings.requests[0].token_ends_ns == TOKEN_ENDS_NS


@pytest.mark.parametrize("name", ENGINES)
def test_the_counts_are_those_of_the_tables(name: str) -> None:
    """Hits, misses, evictions and busy times are what the tables add up to."""
    controller, engine = small_engine(name)
    timings = engine.run()
    controller.close()
    check(controller.counts, timings)
    counts = controller.counts
    copies = len(rows_of(H2D))
    assert (counts.demands, counts.misses, counts.hits) == (28, copies, 28 - copies)
    assert counts.evictions == copies - SLOTS
    assert timings.link_busy_ns == copies * 105_000
    assert timings.gpu_busy_ns == sum(end - begin for begin, end, _ in rows_of(GPU))
    assert timings.host_busy_ns == sum(end - begin for begin, end, _ in rows_of(HOST))
