"""Which machine this is, how much RAM it has, at which clocks it runs: read, never guessed."""

import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import torch

from moesim.hardware_profiles.link import Pcie
from moesim.hardware_profiles.schema import Fingerprint

_QUERY = ("driver_version", "pcie.link.gen.max", "pcie.link.width.max")
_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "pstate")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_DIGITS = 16
_PAGE = "SC_PAGE_SIZE"


def fingerprint(place: torch.device) -> Fingerprint:
    """Return what tells this machine from others."""
    gpu = torch.cuda.get_device_name(place) if place.type == "cuda" else "none, the CPU itself"
    pcie = connection(place)
    return Fingerprint(
        gpu=gpu,
        driver=driver(place),
        cpu=cpu_name(),
        pcie=f"{pcie.generation} x{pcie.width}" if pcie else "not known",
        host=host(place),
    )


def host(place: torch.device) -> str | None:
    """Return a hash of which GPU this is and when its host was started; None where nobody tells.

    Two hosts of the same parts are not equally fast, and neither is one after another start.
    """
    found = (_ask_gpu(("uuid",), place) if place.type == "cuda" else None) or []
    with suppress(OSError):  # only Linux tells when it was started
        found.append(_BOOT.read_text(encoding="ascii").strip())
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:_DIGITS] if found else None


def driver(place: torch.device) -> str:
    """Return the versions that timings depend on."""
    if place.type != "cuda":
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    version = _ask_gpu(_QUERY[:1], place)
    found = version[0] if version else "driver not known"
    return f"{found}, CUDA {torch.version.cuda}, torch {torch.__version__}"


def connection(place: torch.device) -> Pcie | None:
    """Return generation and width of the GPU's PCIe connection, where the driver tells."""
    if place.type != "cuda":
        return None
    answer = _ask_gpu(_QUERY[1:], place)
    if not answer or not all(part.isdigit() for part in answer):
        return None
    return Pcie(f"{answer[0]}.0", int(answer[1]))


def clocks(place: torch.device) -> dict[str, str]:
    """Return the GPU's clocks now, by nvidia-smi's names; nothing where they cannot be read."""
    answer = _ask_gpu(_CLOCKS, place) if place.type == "cuda" else None
    return dict(zip(_CLOCKS, answer, strict=True)) if answer else {}


def cpu_name() -> str:
    """Return the CPU's own name, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def assigned_cores() -> dict[str, str]:
    """Return which cores the runtime on a GPU leaves to whom (``drivers/cuda/cpu_experts.py``)."""
    total = cores()
    others = "all but the first" if total > 1 else "the only one"
    return {
        "of": str(total),
        "host_loop": "the first, which is its own" if total > 1 else "the only one",
        "cpu_experts": f"{cpu_expert_cores()} threads on {others}",
        "asks": f"1 thread on {others}",
    }


def cpu_expert_cores() -> int:
    """Return how many threads compute the CPU's experts: three of four cores."""
    return max(1, cores() * 3 // 4)


def ram_bytes() -> int:
    """Return the RAM there is, or what this process's control group may use of it."""
    total = os.sysconf(_PAGE) * os.sysconf("SC_PHYS_PAGES")
    return min(total, _limit_bytes())


def free_ram_bytes() -> int:
    """Return the RAM that is free."""
    return min(os.sysconf(_PAGE) * os.sysconf("SC_AVPHYS_PAGES"), _limit_bytes())


def _limit_bytes() -> int:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        text = "max"
    return int(text) if text.isdigit() else 2**62


def _ask_gpu(fields: tuple[str, ...], place: torch.device) -> list[str] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, f"--id={place.index or 0}", f"--query-gpu={','.join(fields)}"]
    answer = subprocess.run(  # noqa: S603  nvidia-smi itself, with fields of ours
        [*asked, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
    )
    parts = [part.strip() for part in answer.stdout.strip().split(",")]
    return parts if answer.returncode == 0 and len(parts) == len(fields) else None
