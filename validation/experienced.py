"""What requests that arrived went through, predicted and measured: percentiles over requests."""

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.validation.evidence import Evidence, Guests

KINDS: Mapping[str, str] = {"ttft": "TTFT", "e2e": "E2E", "tpot": "TPOT", "queue": "queueing"}
"""As figures are named, and as a person reads them."""
PERCENTILES = (50, 90)
QUEUE = "queue"
DECIMALS = 6


def percentiles(guests: Sequence[Guests]) -> dict[str, float]:
    """Return ``p50_ttft`` and the like, in ms, over the requests of all runs together.

    What nobody has is left out: requests of one token have no time between tokens.
    """
    found = {}
    for kind in KINDS:
        times_ms = [ms for one in guests for ms in getattr(one, f"{kind}_ms")]
        for percent in PERCENTILES if times_ms else ():
            name = f"p{percent}_request_{kind}"
            found[name] = round(float(np.percentile(times_ms, percent)), DECIMALS)
    return found


def both(one: Evidence) -> tuple[dict[str, float], dict[str, float]] | None:
    """Return the percentiles predicted and measured; None where nobody arrived by himself."""
    foretold = one.prediction.outcome.guests
    went = [each.outcome.guests for each in one.executions]
    known = [guests for guests in went if guests is not None]
    if foretold is None or len(known) != len(went):
        return None
    return percentiles([foretold]), percentiles(known)
