"""Anonymous memory and speed of commands on traces of growing length, all chunked.

``python benchmarks/streaming.py TRACE FOLDER --tokens 200000,2000000`` draws the requests of a
recorded trace again and again (labelled synthetic, ids only), runs the commands below on each
length and prints the most anonymous memory (RssAnon of /proc, looked at 20 times a second): what is
mapped from disk does not count. Folders that exist are taken as they are.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "info": ("trace", "info"),
    "frontier": ("frontier", "--quiet", "--cache", "lru"),
    "simulate clock": ("simulate", "--hardware", "rtx4090", "--slots", "25%", "--quiet"),
    "simulate compiled": (
        *("simulate", "--hardware", "rtx4090", "--slots", "25%", "--quiet"),
        *("--engine", "compiled"),
    ),
}
LOOKS_PER_S = 20


def chunked(trace: Path, folder: Path, tokens: int) -> Path:
    """Return a chunked trace of so many tokens, made if it is not there."""
    target = folder / f"{trace.stem}-{tokens}"
    if not target.exists():
        words = ("trace", "chunk", str(trace), "-o", str(target), "--tokens", str(tokens))
        subprocess.run((*_moesim(), *words, "--ids-only"), check=True)
    return target


def measure(words: tuple[str, ...], trace: Path) -> tuple[float, float, int]:
    """Run a command on a trace; return wall and CPU seconds, and the most anonymous KiB."""
    name, *rest = words
    sub = [name, rest.pop(0)] if name == "trace" else [name]
    began = time.perf_counter()
    process = subprocess.Popen((*_moesim(), *sub, str(trace), *rest), stdout=subprocess.DEVNULL)
    peak, cpu_s = 0, 0.0
    while process.poll() is None:
        peak = max(peak, _anonymous_kib(process.pid))
        cpu_s = max(cpu_s, _cpu_s(process.pid))
        time.sleep(1 / LOOKS_PER_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(sub)} on {trace.name}: exit code {process.returncode}")
    return time.perf_counter() - began, cpu_s, peak


def _moesim() -> tuple[str, ...]:
    return (sys.executable, "-m", "moesim.simulator.cli")


def _anonymous_kib(pid: int) -> int:
    for line in _read(pid, "status").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0


def _cpu_s(pid: int) -> float:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100 if fields else 0.0


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
    except OSError:
        return ""


def main() -> None:
    """Print a line for each command and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", default="200000,2000000")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--cost-of", help="the model whose layers cost what those of the trace do")
    given = parser.parse_args()
    print(
        f"{'command':18} {'tokens':>11} {'wall s':>8} {'CPU s':>8} {'tokens/CPU s':>13} {'MiB':>6}"
    )
    for tokens in map(int, given.tokens.split(",")):
        trace = chunked(given.trace, given.folder, tokens)
        for name in given.commands.split(","):
            words = COMMANDS[name]
            if given.cost_of and words[0] == "simulate":
                words = (*words, "--cost-of", given.cost_of)
            wall_s, cpu_s, kib = measure(words, trace)
            print(
                f"{name:18} {tokens:11,} {wall_s:8.1f} {cpu_s:8.1f} {tokens / cpu_s:13,.0f} "
                f"{kib / 1024:6.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
