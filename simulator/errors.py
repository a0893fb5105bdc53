"""Every error moesim raises on purpose; the type says whose fault it is.

::

    MoesimError
    ├── InputError (ValueError)        the user's file, argument or budget is wrong
    │   ├── UnknownNameError           no such policy, system, option; lists the right ones
    │   ├── CapabilityError            run or driver cannot give what a policy needs
    │   ├── UnavailableError           an engine or backend is not installed here (exit code 3)
    │   └── BudgetError                the memory cannot hold what must be there
    ├── OutOfMemoryError (RuntimeError) the run outgrew the machine
    ├── ProtocolError (RuntimeError)   a driver reported what cannot have happened: a driver's bug
    ├── PolicyError (RuntimeError)     a policy answered with what it was not offered: its bug
    └── BooksError (RuntimeError)      the ledger does not balance at the end of a run

``TraceError`` and ``ProfileError`` live beside the files they speak of, two layers down.
``USER_ERRORS`` is all of those that the command line turns into one line and exit code 1.
"""

from difflib import get_close_matches
from typing import TYPE_CHECKING

from moesim.hardware_profiles.errors import ProfileError
from moesim.traces.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable


class MoesimError(Exception):
    """What every error of the simulator derives from."""


class InputError(MoesimError, ValueError):
    """The user's file or argument is wrong; the message names place, value and way out."""


class UnknownNameError(InputError):
    """A name that nothing answers to."""

    def __init__(self, kind: str, name: str, known: "Iterable[str]") -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        super().__init__(f"no {kind} '{name}'; {hint}there are: {', '.join(names) or 'none'}")


class CapabilityError(InputError):
    """A policy or a run needs what this trace, run or driver does not have."""


class UnavailableError(InputError):
    """An engine or a backend that is not installed, or not on this machine."""


class BudgetError(InputError):
    """A memory budget that cannot hold what has to be in it."""


class OutOfMemoryError(MoesimError, RuntimeError):
    """The run outgrew VRAM or RAM; nothing was clamped."""


class ProtocolError(MoesimError, RuntimeError):
    """A driver told the controller what cannot have happened."""


class PolicyError(MoesimError, RuntimeError):
    """A policy answered with something it was not offered."""


class BooksError(MoesimError, RuntimeError):
    """Counts, bytes or times of a finished run do not add up."""


USER_ERRORS = (MoesimError, TraceError, ProfileError)
