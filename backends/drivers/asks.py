"""Asks: what a policy wants computed beside the host thread, one after another, in a thread."""

from typing import Any

from moesim.backends.drivers.streams import Job, Stream
from moesim.simulator.controller import Controller
from moesim.simulator.messages import Answered, Ask


class Asks:
    """Asks that were handed over, and their answers.

    Args:
        controller: Whose policies compute.
        stream: Does them in order.
    """

    def __init__(self, controller: Controller, stream: Stream) -> None:
        self._controller = controller
        self._stream = stream
        self._open: dict[int, tuple[Job, list[Answered]]] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    def start(self, command: Ask) -> None:
        """Hand an ask over."""
        answers: list[Answered] = []

        def answer() -> None:
            value: Any = self._controller.compute(command.name, command.question)
            answers.append(Answered(command.n, command.name, value))

        job = Job(command, answer, ())
        self._open[command.n] = (job, answers)
        self._stream.submit(job)

    def jobs(self) -> list[tuple[int, Job]]:
        """Return what was handed over and not reported, by number."""
        return [(n, job) for n, (job, _) in self._open.items()]

    def take(self) -> list[Answered]:
        """Return the answers that have come, once."""
        ended = [n for n, (job, _) in self._open.items() if job.ended.is_set()]
        return [answer for n in ended for answer in self._open.pop(n)[1]]
