"""What only whole tokens tell, filled into a runtime whose other figures are known."""

from collections.abc import Sequence
from typing import Any

from moesim.backends.calibration.fitting import Check
from moesim.backends.calibration.leftover import Rest, Times, rest_of
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.calibration.whole_tokens import Session
from moesim.hardware_profiles.files import validated
from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.schema import HardwareProfile

SOURCES = "tokens", "prompts"


def fit_tokens(
    machine: dict[str, Any],
    runtime: dict[str, Any],
    sheet: Sheet,
    pair: tuple[Session, Session],
    others: Sequence[Session],
) -> None:
    """Fill in, in place, with what the pair's tokens and prompts take what they took.

    Args:
        machine: The hardware profile, complete.
        runtime: The runtime's sections, but for what is filled in.
        sheet: Of the runtime; sessions' samples and what no fit has seen are on it.
        pair: One model with few layers and with many.
        others: Models that check all of it.
    """
    names = tuple(name for session in pair for name in session.names())
    for source, at in zip(SOURCES, (0, 1), strict=True):
        sheet.source(source, "all experts resident", [names[at], names[at + 3]])
    profile = validated(unfinished(machine, {}), HardwareProfile, "machine")

    def explained(session: Session, rest: Rest) -> Times:
        tree = unfinished(rest.put(runtime, SOURCES), sheet.sources)
        return session.explained(profile, validated(tree, RuntimeProfile, "runtime"))

    few, many = pair
    rest = rest_of(pair, (took(sheet, few), took(sheet, many)), explained)
    runtime |= rest.put(runtime, SOURCES)
    for kind in SOURCES:
        checks = [
            check
            for session in others
            for check in _checks(sheet, session, explained(session, rest), kind)
        ]
        used = [name for name in names if (" prompt" in f" {name}") == (kind == "prompts")]
        sheet.source(
            kind,
            f"{kind} of {few.name} and {many.name}, every expert resident, less what the other"
            " figures explain",
            used,
            checks,
        )


def took(sheet: Sheet, session: Session) -> Times:
    """Return what a session took, the median of its samples."""
    return Times(*(sheet.median(name) for name in session.names()))


def _checks(sheet: Sheet, session: Session, says: Times, kind: str) -> Sequence[Check]:
    measured, (token, short, prompt) = took(sheet, session), session.names()
    if kind == "tokens":
        return [Check(token, says.token, measured.token)]
    return [Check(short, says.short, measured.short), Check(prompt, says.prompt, measured.prompt)]


def unfinished(tree: dict[str, Any], sources: dict[str, Any]) -> dict[str, Any]:
    """Return sections as a profile's file has them, under a name that is to come."""
    return {"schema": "1", "name": "unfinished", "title": "unfinished", "sources": sources} | tree
