"""Keep nothing: every expert is copied for one layer of one step and forgotten."""

from moesim.simulator.policies.base import CachePolicy, View
from moesim.simulator.terms import Verdict

__all__ = ["Transient"]


class Transient(CachePolicy):
    """No cache: the whole budget is staging room."""

    paper = "Hugging Face accelerate AlignDevicesHook; the on-demand baseline of every paper"

    def staging_bytes(self) -> int:
        """Return the whole budget."""
        return self.run.budget_bytes

    def admit(self, expert: int, view: View) -> Verdict:
        """Return that the expert only passes through."""
        return Verdict.TRANSIENT
