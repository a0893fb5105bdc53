"""A token's time with every expert in VRAM: what the runtime takes where nothing is moved.

Predicted by the figures that predict the cells, and measured: the difference of the two is the
runtime's, and no cell's error should be sought in transfers before it is explained.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.simulator.costs import CostModel
from moesim.traces import RoutingTrace
from moesim.validation.cells import choose_system, make_cell
from moesim.validation.loads import Load
from moesim.validation.predict import predict
from moesim.validation.rig import Rig, RiggedMachine
from moesim.validation.settings import Setting
from moesim.validation.subject import SETTLING, Subject

SYSTEM, BUDGET = "lru", "100%"


class AllResident(NamedTuple):
    """Both, in ms; None where not every expert fits, or a request is too short."""

    predicted_ms: float | None = None
    measured_ms: float | None = None

    @classmethod
    def of(
        cls,
        rig: Rig,
        subject: Subject,
        profiles: tuple[HardwareProfile, RuntimeProfile],
        trace: RoutingTrace,
        say: Callable[[str], None],
    ) -> Self:
        """Predict the first request of a trace, then serve it.

        Args:
            rig: Its machine.
            subject: The model.
            profiles: The figures.
            trace: What cells serve.
            say: Told what is lacking.
        """
        alone = trace.select_requests([0])
        tokens = int((~alone.is_prefill_T).sum()) - SETTLING
        if subject.resident is None or tokens < 1:
            return cls()
        load = Load(Setting(), alone, trace.header.model, frozenset({0}))
        machine = RiggedMachine(
            rig,
            subject,
            CostModel(*profiles, subject.opened.costs_of),
            load,
            "forced",
            subject.make_driver,
        )
        cell = make_cell(
            choose_system(SYSTEM),
            BUDGET,
            subject.opened.store.total_bytes,
            backend="",
            profiles=profiles,
            fit_traces=(),
            model=subject.name,
            trace=alone,
            trace_name=load.name,
            routing="forced",
            lengths=(SETTLING, tokens, 1),
        )
        predicted = predict(machine, cell).prediction.outcome.times.p50_tpot
        return cls(predicted, subject.resident_ms(alone, say))
