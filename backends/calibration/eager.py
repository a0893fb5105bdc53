"""Transformers' own modules under measurement, without graphs: the mode called ``hf-eager``.

Rates, copies and what decisions cost are measured as ever. Launching, not the device, decides how
fast such modules are, and only whole tokens tell it: of a model with few layers and with many, and
of the latter with a launch for each expert. What experts take the host beyond a launch is in what a
layer takes: so much for as many experts as the fitted model's tokens use.
"""

from pathlib import Path
from typing import Any

import torch

from moesim.backends import reference
from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.graph_points import FEW_LAYERS, FITTED, MANY_LAYERS
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.calibration.software import Software
from moesim.backends.calibration.token_fit import fit_tokens, took
from moesim.backends.calibration.whole_tokens import Lengths, Session
from moesim.backends.calibration.works import Work
from moesim.backends.drivers.cuda.driver import CudaDriver
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import MakeDriver
from moesim.simulator.registry import Axis

HF_EAGER = "hf-eager"
EACH_ALONE: dict[Axis, str] = {"cache": "lru", "prefetch": "none", "schedule": "on_demand"}
SESSION_EVERY = 3
_EVENT = "host event"


class EagerSoftware:
    """The driver without graphs; see `Software`.

    Args:
        base: The software whose rates and copies hold here too.
        models: Model and layers: one with few layers, the same with many, then those that check.
        place: The device.
        make_driver: What serves.
        lengths: Of the requests.
    """

    words = "transformers' own modules, without graphs"

    def __init__(
        self,
        base: Software,
        models: list[tuple[str, int | None]],
        place: torch.device,
        make_driver: MakeDriver,
        lengths: Lengths,
    ) -> None:
        self._base = base
        self.kernel: Work = base.kernel
        made = [
            Session(model, layers, place, make_driver, lengths, kind="eager ")
            for model, layers in models
        ]
        self._few, self._many, *self._others = made
        model, layers = models[1]
        self._alone = Session(
            model,
            layers,
            place,
            make_driver,
            lengths,
            kind="eager each alone ",
            policies=EACH_ALONE,
        )

    def probes(self) -> list[Probe]:
        """Return the probes of the base, and of whole tokens."""
        found = self._base.probes()
        for session in self._sessions():
            found += session.probes(SESSION_EVERY)
        return found

    def gpu(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``gpu``: those of the base."""
        return self._base.gpu(sheet)

    def sections(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's sections, but for what `complete` fills in."""
        return self._base.sections(sheet)

    def cold_ns(self, sheet: Sheet) -> float:
        """Return how much longer a decision takes in a run than in a row."""
        return self._base.cold_ns(sheet)

    def complete(self, machine: dict[str, Any], runtime: dict[str, Any], sheet: Sheet) -> None:
        """Fill in what a run and a layer take the host; tokens of other models check all of it."""
        together, alone = took(sheet, self._many).token, took(sheet, self._alone).token
        more_runs = self._many.layers * (self._many.top_k - 1)
        run_ns = max(0.0, alone - together) / more_runs - sheet.median(_EVENT)
        source = sheet.source(
            "eager-run",
            "a token with a run for each expert, less one with a run a layer, by run",
            [self._alone.names()[0], self._many.names()[0]],
        )
        launch = {"run": [write.ns(run_ns), source], "per_expert": [write.ns(0.0), source]}
        runtime["launch"] = {**runtime["launch"], **launch}
        fit_tokens(machine, runtime, sheet, (self._few, self._many), self._others)

    def close(self) -> None:
        """Release the models, and what the base holds."""
        for session in self._sessions():
            session.close()
        self._base.close()

    def _sessions(self) -> list[Session]:
        return [self._few, self._many, *self._others, self._alone]


def eager(base: Software, place: torch.device) -> EagerSoftware:
    """Return the mode on a device: on a CPU of the reference model, with random weights."""
    if place.type == "cuda":
        models: list[tuple[str, int | None]] = [
            (FITTED, FEW_LAYERS),
            (FITTED, MANY_LAYERS),
            ("qwen3-30b-a3b", FEW_LAYERS),
        ]
        return EagerSoftware(base, models, place, CudaDriver, Lengths())
    weights = str(Path(reference.__path__[0]) / "weights")
    models = [(weights, 2), (weights, 8), (weights, 4)]
    return EagerSoftware(base, models, place, ThreadsDriver, Lengths(prompt=32, decode=12))
