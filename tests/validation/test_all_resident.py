"""A token with every expert in VRAM: predicted by the cells' own figures, then measured."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="it runs a real model")

from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.simulator.errors import OutOfMemoryError
from moesim.traces import RoutingTrace
from moesim.validation.all_resident import AllResident
from moesim.validation.evidence import Provenance
from moesim.validation.protocol import run_cells
from moesim.validation.subject import Subject
from moesim.validation.tables import print_cells

STILL = {"copy": 1000, "loop": 500}
NOBODY: Any = None


def measured(
    subject: Subject, trace: RoutingTrace, say: Callable[[str], None], **machine: int
) -> AllResident:
    """Return both times, the first by round figures some of which are changed."""
    profiles = round_machine(**machine), round_runtime()
    return AllResident.of(NOBODY, subject, profiles, trace, say)


def test_it_is_predicted_and_measured(
    tiny_subject: Subject, trace_of: Callable[..., RoutingTrace]
) -> None:
    """No expert moves after the first tokens: a link of any speed predicts the same."""
    found = measured(tiny_subject, trace_of(), print)
    slow = measured(tiny_subject, trace_of(), print, link_bytes_per_s=10**9)
    assert found.predicted_ms == slow.predicted_ms
    assert found.predicted_ms is not None
    assert found.measured_ms is not None
    assert 0 < found.predicted_ms < found.measured_ms


def test_where_vram_does_not_do_it_is_not_measured(
    tiny_subject: Subject,
    trace_of: Callable[..., RoutingTrace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was predicted stays; a line says why there is nothing beside it."""

    def refuse(*_given: object, **_options: object) -> None:
        raise OutOfMemoryError("54GiB of VRAM for experts, 48.2GiB are free")

    monkeypatch.setattr(Subject, "serve", refuse)
    said: list[str] = []
    found = measured(tiny_subject, trace_of(), said.append)
    assert found.predicted_ms is not None
    assert found.measured_ms is None
    assert said == [
        "every expert in VRAM: not measured, 54GiB of VRAM for experts, 48.2GiB are free"
    ]


def test_where_nothing_holds_every_expert_there_is_neither(
    tiny_subject: Subject, trace_of: Callable[..., RoutingTrace]
) -> None:
    """A model that is too large has no such time."""
    tiny_subject.resident = None
    assert measured(tiny_subject, trace_of(), print) == (None, None)


@pytest.mark.parametrize(
    ("predicted", "printed"), [(4.69, "4.690 ms / 5.863 ms"), (None, "- / 5.863 ms")]
)
def test_the_table_has_both(
    machine: Any,
    cells_of: Callable[..., Any],
    folder: Any,
    origin: Any,
    capsys: pytest.CaptureFixture[str],
    predicted: float | None,
    printed: str,
) -> None:
    """Evidence of before has no prediction of it; it is read as it was."""
    [one] = run_cells(
        machine, cells_of(machine, systems=("lru",), repeats=1), folder, origin, anchors_ns=STILL
    )
    times = {"resident_ms": 5.863, "resident_predicted_ms": predicted}
    provenance = Provenance(**one.provenance.model_dump() | times)
    print_cells([one.model_copy(update={"provenance": provenance})])
    assert printed in capsys.readouterr().out
    assert ("resident_predicted_ms" in provenance.model_dump()) is (predicted is not None)
