"""For authors of policies: a tiny trace, a hostile driver, and one call that checks a policy.

>>> from moesim.simulator.testing import check_policy
>>> check_policy("lru").axis
'cache'

The same as pytest fixtures: ``tiny_trace``, ``adversarial_driver`` and ``view`` (installed with
moesim, see ``pytest_plugin.py``).
"""

from moesim.simulator.testing.adversary import AdversarialDriver, Choose, seeded
from moesim.simulator.testing.check import PolicyReport, check_policy, sample_spec
from moesim.simulator.testing.companions import KEEP_AT_RANDOM, SPLIT_AT_RANDOM, WISH_AT_RANDOM
from moesim.simulator.testing.small_runs import (
    adversarial,
    as_spec,
    counted,
    decisions,
    engine,
    logged,
    small_run,
)
from moesim.simulator.testing.tiny import rename_experts, tiny_trace, trace_of
from moesim.simulator.testing.witness import Witness

__all__ = [
    "KEEP_AT_RANDOM",
    "SPLIT_AT_RANDOM",
    "WISH_AT_RANDOM",
    "AdversarialDriver",
    "Choose",
    "PolicyReport",
    "Witness",
    "adversarial",
    "as_spec",
    "check_policy",
    "counted",
    "decisions",
    "engine",
    "logged",
    "rename_experts",
    "sample_spec",
    "seeded",
    "small_run",
    "tiny_trace",
    "trace_of",
]
