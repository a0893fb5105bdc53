"""The runtime's sections on the host: what launches, waits and copy calls cost it."""

from typing import Any

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.sheet import Sheet

_WINDOW = "16MiB"
_LAYER = "host launch layer"
_RUN = "host launch run"
_ONE = "host launch run of one"


def launch(sheet: Sheet, experts: int) -> dict[str, Any]:
    """Return the section ``launch``.

    Args:
        sheet: The samples.
        experts: How many the run has that ``host launch run`` launches.
    """
    source = sheet.source(
        "launch", "host time of one launch, without waiting", [_LAYER, _RUN, _ONE]
    )
    event = sheet.source("event", "host time to record one event", ["host event"])
    run, one = sheet.median(_RUN), sheet.median(_ONE)
    per_expert = max(0.0, run - one) / (experts - 1)
    return {
        "layer": [write.ns(sheet.median(_LAYER)), source],
        "run": [write.ns(run - experts * per_expert), source],
        "per_expert": [write.ns(per_expert), source],
        "event": [write.ns(sheet.median("host event")), event],
    }


def wait(sheet: Sheet) -> dict[str, Any]:
    """Return the section ``wait``."""
    router = sheet.source(
        "router", "from the end of a small work until the host knows", ["host wait router"]
    )
    poll = sheet.source("poll", "host time to ask one event", ["host poll"])
    return {
        "router": [write.ns(sheet.median("host wait router")), router],
        "poll": [write.ns(sheet.median("host poll")), poll],
    }


def copying(sheet: Sheet) -> dict[str, Any]:
    """Return the section ``copying``; the profile's latency holds all that a copy adds."""
    issue = sheet.source("issue", "host time of one copy call", ["host issue"])
    return {
        "source": "pinned",
        "blocking": "no",
        "pieces_per_expert": "1",
        "issue": [write.ns(sheet.median("host issue")), issue],
        "overhead": ["0us", issue],
        "window": _WINDOW,
    }
