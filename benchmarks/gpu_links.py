"""What the links of a host's GPUs share: each alone, then together.

``python benchmarks/gpu_links.py -o links.json`` needs two GPUs or more. One host thread drives all
of them, as a run does. For every way and pair of ways it prints the rate of each GPU's copies alone
and while others run; then copies between GPUs, one way and both, by size; then what it costs to
send a token's activations to another GPU and back, which each layer of expert parallelism pays.
The figures become ``link.shared`` and ``link.peer`` of a hardware profile.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

import torch
from torch import Tensor

COPY_BYTES = 9 << 20
"""About an expert of Qwen3-30B-A3B."""
ROW_BYTES = 64 << 20
COPIES = 40
REPEATS = 7
SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 9 << 20, 64 << 20)
ROUNDS = 50
HELD_CYCLES = 60_000_000
"""GPUs are kept waiting so long, about 30 ms: meanwhile the host hands everything over."""


class Way(NamedTuple):
    """Where bytes go from and to: a GPU's number, or the host."""

    source: int | None
    target: int | None

    def __str__(self) -> str:
        names = ["host" if end is None else f"gpu{end}" for end in self]
        return "->".join(names)

    @property
    def gpu(self) -> int:
        """Whose copy engine moves them: the source's, between GPUs."""
        number = self.target if self.source is None else self.source
        assert number is not None
        return number


class Mover:
    """Copies of one way, in a stream of their own.

    Args:
        way: Where to and from.
        nbytes: Of each copy.
    """

    def __init__(self, way: Way, nbytes: int) -> None:
        self.stream: Any = torch.cuda.Stream(device=way.gpu)  # type: ignore[no-untyped-call]
        self._source_B, self._target_B = (_bytes_at(end, nbytes) for end in way)

    def issue(self) -> None:
        """Hand one copy over."""
        with torch.cuda.stream(self.stream):
            self._target_B.copy_(self._source_B, non_blocking=True)

    def mark(self) -> Any:  # noqa: ANN401  an event of torch
        """Return an event at the end of what was handed over."""
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def synchronize(self) -> None:
        """Wait for what was handed over."""
        self.stream.synchronize()


def _bytes_at(gpu: int | None, nbytes: int) -> Tensor:
    if gpu is None:
        return torch.ones(nbytes, dtype=torch.uint8).pin_memory()
    return torch.ones(nbytes, dtype=torch.uint8, device=f"cuda:{gpu}")


def rates(ways: Sequence[Way], nbytes: int) -> dict[str, float]:
    """Return GB/s of each way while all of them copy; median over repeats.

    One host thread hands the copies over in turn. A way's rate is taken over the time in which all
    are busy: the copies of the faster ones go on until the slowest has ended.
    """
    movers = [Mover(way, nbytes) for way in ways]
    found: list[list[float]] = [[] for _ in ways]
    for repeat in range(REPEATS + 1):
        _hold([mover.stream for mover in movers])
        marks: list[list[Any]] = [[mover.mark()] for mover in movers]
        for _ in range(COPIES):
            for mover, mine in zip(movers, marks, strict=True):
                mover.issue()
                mine.append(mover.mark())
        for mover in movers:
            mover.synchronize()
        if not repeat:
            continue
        ends_ms = [[mine[0].elapsed_time(mark) for mark in mine] for mine in marks]
        shortest_ms = min(each[-1] for each in ends_ms)
        for rows, each in zip(found, ends_ms, strict=True):
            # Begin with the second copy: until then the others may not have begun.
            whole = [at for at in each[1:] if at <= shortest_ms]
            rows.append(nbytes * (len(whole) - 1) / (whole[-1] - whole[0]) / 1e6)
    return {str(way): statistics.median(rows) for way, rows in zip(ways, found, strict=True)}


def exchange_us(width_bytes: int) -> dict[str, float]:
    """Return what it takes to have a token's work done by another GPU, in µs.

    A kernel on GPU 0, its result to GPU 1, a kernel there, the result back, a kernel on GPU 0;
    against the three kernels on GPU 0 alone. No host wait lies between.
    """
    here_B, back_B = (torch.ones(width_bytes // 2, device="cuda:0").half() for _ in range(2))
    there_B = torch.ones(width_bytes // 2, device="cuda:1").half()
    streams: list[Any] = [torch.cuda.Stream(device=gpu) for gpu in (0, 1)]  # type: ignore[no-untyped-call]
    sent, done = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def alone() -> None:
        with torch.cuda.stream(streams[0]):
            for tensor in (here_B, back_B, here_B):
                tensor.add_(1)

    def together() -> None:
        with torch.cuda.stream(streams[0]):
            here_B.add_(1)
            there_B.copy_(here_B, non_blocking=True)
            sent.record(streams[0])
        with torch.cuda.stream(streams[1]):
            streams[1].wait_event(sent)
            there_B.add_(1)
            back_B.copy_(there_B, non_blocking=True)
            done.record(streams[1])
        with torch.cuda.stream(streams[0]):
            streams[0].wait_event(done)
            here_B.add_(1)

    return {
        name: _round_us(play, streams)
        for name, play in (("alone", alone), ("with another GPU", together))
    }


def _round_us(play: Callable[[], None], streams: Sequence[Any]) -> float:
    """Return how long a round takes on the GPUs, many in a row, handed over before they begin."""
    found = []
    for repeat in range(REPEATS + 1):
        _hold(streams)
        marks: list[Any] = []
        for _ in range(2):
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record(streams[0])
            for _ in range(ROUNDS if len(marks) == 1 else 0):
                play()
        _synchronize()
        if repeat:
            took_ms: float = marks[0].elapsed_time(marks[1])
            found.append(took_ms / ROUNDS * 1e3)
    return statistics.median(found)


def _hold(streams: Sequence[Any]) -> None:
    """Let what is handed to these streams begin together, some time from now."""
    _synchronize()
    gate: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.device(0):
        sleep: Any = torch.cuda._sleep  # noqa: SLF001  torch has no other
        sleep(HELD_CYCLES)
        gate.record(torch.cuda.current_stream(0))
    for stream in streams:
        stream.wait_event(gate)


def issue_us() -> dict[str, float]:
    """Return the host's time for one copy call, to one GPU and to two in turn, in µs."""
    found = {}
    for name, gpus in (("one GPU", (0, 0)), ("two GPUs in turn", (0, 1))):
        movers = [Mover(Way(None, gpu), 4 << 10) for gpu in gpus]
        each = []
        for _ in range(REPEATS):
            began_ns = perf_counter_ns()
            for _ in range(ROUNDS // 2):
                for mover in movers:
                    mover.issue()
            each.append((perf_counter_ns() - began_ns) / ROUNDS / 1e3)
            _synchronize()
        found[name] = statistics.median(each)
    return found


def measure() -> dict[str, Any]:
    """Return all figures of GPUs 0 and 1."""
    to0, to1, from0, from1 = Way(None, 0), Way(None, 1), Way(0, None), Way(1, None)
    over, back = Way(0, 1), Way(1, 0)
    groups = [
        [to0], [to1], [to0, to1],
        [from0], [from1], [from0, from1],
        [to0, from0], [to0, from1], [to0, to1, from0, from1],
        [over], [back], [over, back],
        [to0, over], [to1, over], [to0, to1, over, back],
    ]  # fmt: skip
    return {
        "peer_access": [torch.cuda.can_device_access_peer(*pair) for pair in ((0, 1), (1, 0))],
        "together": [
            {"bytes": nbytes, "gb_per_s": rates(ways, nbytes)}
            for nbytes in (COPY_BYTES, ROW_BYTES)
            for ways in groups
        ],
        "by_size": {
            str(way): {nbytes: rates([way], nbytes)[str(way)] for nbytes in SIZES}
            for way in (to0, from0, over, back)
        },
        "exchange_us": {width: exchange_us(width) for width in (4 << 10, 16 << 10, 256 << 10)},
        "issue_us": issue_us(),
    }


def describe() -> dict[str, Any]:
    """Return which machine it was."""
    return {
        "gpus": [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "topology": _said("topo", "-m")[: torch.cuda.device_count() + 1],
        "nvlink": [line for line in _said("nvlink", "-s", "-i", "0") if line.startswith("Link")],
    }


def _said(*options: str) -> list[str]:
    """Return what the driver's tool prints, without its colours."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return []
    done = subprocess.run([smi, *options], capture_output=True, text=True, check=False)
    return [re.sub(r"\x1b\[\d*m", "", line).strip() for line in done.stdout.splitlines()]


def _synchronize() -> None:
    for gpu in (0, 1):
        torch.cuda.synchronize(gpu)


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    for row in found["together"]:
        said = ", ".join(f"{way} {rate:.1f}" for way, rate in row["gb_per_s"].items())
        print(f"{row['bytes'] >> 20:3d} MiB  {said} GB/s")
    for way, sizes in found["by_size"].items():
        print(way, ", ".join(f"{size >> 10} KiB {rate:.2f}" for size, rate in sizes.items()))
    for key in ("peer_access", "exchange_us", "issue_us"):
        print(key, found[key])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures as JSON")
    output = parser.parse_args().output
    if not torch.cuda.is_available() or torch.cuda.device_count() < 2:
        sys.exit(f"gpu_links needs two GPUs; there are {torch.cuda.device_count()}")
    found = {"machine": describe(), **measure()}
    show(found)
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
