"""A cell's prediction: the replay of its demands on the model of its machine."""

from dataclasses import dataclass

from moesim.simulator.engines.simpy import SimpyEngine
from moesim.simulator.errors import CapabilityError
from moesim.simulator.ledger import check
from moesim.simulator.run_spec import GRANTS
from moesim.simulator.workload.demands import Workload
from moesim.simulator.workload.foresight import RecordedFuture
from moesim.validation.compare import one_token, outcome_of
from moesim.validation.evidence import Cell, Prediction
from moesim.validation.evidence_files import hash_of
from moesim.validation.machine import Log, Machine


@dataclass(frozen=True, slots=True)
class Replayed:
    """A prediction, and the log of the replay that made it."""

    prediction: Prediction
    log: Log


def predict(machine: Machine, cell: Cell) -> Replayed:
    """Replay a cell in virtual time.

    Raises:
        CapabilityError: The trace lacks what a policy reads.
        InputError: The trace has too few tokens.
    """
    trace, deciding = machine.trace, machine.deciding(cell)
    costs = machine.costs.with_signals(deciding.needs)
    signals = sorted(deciding.needs - GRANTS - {"gates"})
    for signal in signals:
        if signal not in trace.header.signals:
            raise CapabilityError(
                f"{cell.system} reads the signal '{signal}', which {cell.trace} does not have; "
                "record it with moesim record"
            )
    sizes_L = tuple(layer.expert_bytes for layer in costs.shape.layers)
    controller = deciding.controller(
        experts=trace.experts,
        top_k=trace.top_k,
        sizes_L=sizes_L,
        future=RecordedFuture(Workload(trace).events()) if "future" in deciding.needs else None,
        keep_log=True,
    )
    engine = SimpyEngine(
        controller,
        machine.workload(cell, signals=signals, gates="gates" in deciding.needs),
        costs,
        expert_bytes=controller.residency.part_bytes,
        splits=controller.residency.is_split,
        budget_bytes=deciding.budget_bytes,
        system=cell.system,
        compute=controller.compute,
        ask_ns=cell.ask_ns,
        keep_spans=True,
        terms=machine.terms,
    )
    timings = engine.run()
    controller.close()
    check(controller.counts, timings)
    assert controller.log is not None
    assert engine.spans is not None
    commands = [command for _, _, answer in controller.log for command in answer]
    busy = {
        "copy": timings.link_busy_ns,
        "dense": timings.dense_busy_ns,
        "experts": timings.experts_busy_ns,
    }
    prediction = Prediction(
        cell=cell,
        outcome=outcome_of(
            controller.counts,
            timings,
            engine.spans,
            controller.log,
            (cell.warm_tokens, cell.tokens),
            arrived=machine.terms is not None,
        ),
        evidence=costs.evidence_for(busy),
        band=round(costs.band_for(busy), 6),
        decisions=len(commands),
        decisions_hash=hash_of("\n".join(map(repr, commands))),
        timeline=one_token(timings, engine.spans, token_shown(cell), trace.experts),
    )
    return Replayed(prediction, controller.log)


def token_shown(cell: Cell) -> int:
    """Return which decode token's timeline is kept: the first that counts."""
    return cell.warm_tokens + 1
