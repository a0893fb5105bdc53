"""Tells policies of one request at a time where the next request begins.

Policies are not told which request a step serves; with one request in a step a prompt begins one.
A trace without prompts looks like one long request.
"""

from moesim.simulator.policies.base import View


class Requests:
    """Whether the present step is the first of a request."""

    def __init__(self) -> None:
        self._step = -1

    def begins(self, view: View) -> bool:
        """Return True once for each step that holds a prompt, when it is first seen."""
        if view.step == self._step:
            return False
        self._step = view.step
        return not view.is_decode
