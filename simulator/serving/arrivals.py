"""When requests arrive: at given times, or when somebody who was answered asks again."""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Arrivals", "Later", "OpenLoop", "Users"]


class Arrivals(Protocol):
    """Where requests come from. They are numbered from 0 in order of arrival."""

    @property
    def next_ns(self) -> int | None:
        """When the next request arrives; None if none will, or none before another has ended."""
        ...

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Return the requests that have arrived and were not taken, with their times."""
        ...

    def ended(self, now_ns: int) -> None:
        """Learn that a request has ended, or was refused."""
        ...


class OpenLoop:
    """Requests that arrive at times of their own, whatever becomes of those before."""

    def __init__(self, arrival_ns_R: Sequence[int]) -> None:
        self._left = deque(enumerate(arrival_ns_R))

    @property
    def next_ns(self) -> int | None:
        """When the next request arrives."""
        return self._left[0][1] if self._left else None

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Return the requests that have arrived and were not taken."""
        taken = []
        while self._left and self._left[0][1] <= now_ns:
            taken.append(self._left.popleft())
        return taken

    def ended(self, now_ns: int) -> None:
        """Change nothing."""


class Users:
    """Users who ask again once they were answered, after some thought.

    Args:
        users: How many there are; all ask at time 0.
        requests: How many requests they ask in all.
        think_ns: From an answer to the same user's next request.
    """

    def __init__(self, users: int, requests: int, think_ns: int = 0) -> None:
        self._due: deque[int] = deque([0] * min(users, requests))
        self._asked = 0
        self._left = requests - len(self._due)
        self._think_ns = think_ns

    @property
    def next_ns(self) -> int | None:
        """When the next user asks; None if all of them wait for answers."""
        return self._due[0] if self._due else None

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Return what users have asked."""
        taken = []
        while self._due and self._due[0] <= now_ns:
            taken.append((self._asked, self._due.popleft()))
            self._asked += 1
        return taken

    def ended(self, now_ns: int) -> None:
        """Let a user begin to think; answers come in order of time, so questions do too."""
        if self._left:
            self._left -= 1
            self._due.append(now_ns + self._think_ns)


class Later:
    """Arrivals whose time 0 is a moment of another clock.

    Args:
        arrivals: Whose times count from that moment.
        origin_ns: That moment.
    """

    def __init__(self, arrivals: Arrivals, origin_ns: int) -> None:
        self._arrivals = arrivals
        self._origin_ns = origin_ns

    @property
    def next_ns(self) -> int | None:
        """When the next request arrives."""
        at_ns = self._arrivals.next_ns
        return None if at_ns is None else at_ns + self._origin_ns

    def take(self, now_ns: int) -> list[tuple[int, int]]:
        """Return the requests that have arrived and were not taken."""
        taken = self._arrivals.take(now_ns - self._origin_ns)
        return [(request, at_ns + self._origin_ns) for request, at_ns in taken]

    def ended(self, now_ns: int) -> None:
        """Learn that a request has ended, or was refused."""
        self._arrivals.ended(now_ns - self._origin_ns)
