"""What `emoe_periods.py` compares: ways to hold experts, and how often to predict."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from moesim.simulator import systems
from moesim.simulator.registry import Axis

PERIODS = (1, 10, 20, 40, 60, 80)
ADAPTIVE_PERIODS = (1, 2, 3, 5, 10, 40)
RIVALS = {
    "best window": "predictor=best_window",
    "last 80 prompts": "window=80",
    "light": "predictor=light",
}
"""Who predicts both at a fixed p and adaptively, beside the last 20 prompts."""
PLAIN = "resident_first"
START = "first=profile"
SKIP = "fallback:miss=skip,ranking=top/resident_first"
REPLAYED = "last 20 prompts"
"""The arm whose replays give the line that counted arms are timed by."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to hold experts.

    Attributes:
        name: What the tables call it.
        cache: Its cache policy.
        schedule: Its schedule.
        prefetch: Its prefetch policy.
        period: p, where it has one.
        slots: Room for experts; None for the share that all have.
        weights_format: Another format of the experts than the run's.
        engine: Which simulator can run it; ``counted`` asks its cache policy alone.
    """

    name: str
    cache: str
    schedule: str = PLAIN
    prefetch: str = "none"
    period: int | None = None
    slots: str | None = None
    weights_format: str | None = None
    engine: str = "clock"

    @property
    def policies(self) -> Mapping[Axis, str]:
        """Its three policies."""
        return {"cache": self.cache, "prefetch": self.prefetch, "schedule": self.schedule}


def arms(networks: Path) -> Iterator[Arm]:
    """Yield what is compared in every order; what a table cannot do without comes first."""
    asked = f"predictor=network,file={networks}"
    for p in (1, 40):
        yield Arm(REPLAYED, f"periodic:period={p},{START}", period=p)
    yield Arm("lru", "lru", engine="compiled")
    yield Arm("lfu", "lfu", engine="compiled")
    for name in ("pregated", "moe-infinity"):
        bundle = systems.load(name)
        yield Arm(name, bundle.cache, bundle.schedule, bundle.prefetch)

    yield _counted("static offline set", "period=1000000,window=1000000")
    for p in (10, 20, 60, 80):
        yield _counted(REPLAYED, f"period={p}", p)
    for p in PERIODS:
        yield _counted("XLNet A", f"period={p},{asked}", p)
    yield from _rivals()
    for p in (1, 40):
        yield _counted("perfect prediction", f"period={p},predictor=signal", p)
    yield _counted("perfect mean of 40", "period=40,predictor=signal,signal=ahead_use_RLE", 40)
    yield _counted("random", "period=40,predictor=random", 40)


def _rivals() -> Iterator[Arm]:
    """Yield whoever predicts both at a fixed p and adaptively; last 20 has its fixed p above."""
    for name, options in RIVALS.items():
        for p in PERIODS:
            yield _counted(name, f"period={p},{options}", p)
        for p in ADAPTIVE_PERIODS:
            yield _counted(f"{name}, adaptive", f"period={p},{options},adapt=true", p)
    for p in ADAPTIVE_PERIODS:
        yield _counted(f"{REPLAYED}, adaptive", f"period={p},adapt=true", p)


def _counted(name: str, options: str, period: int | None = None) -> Arm:
    return Arm(name, f"periodic:{options},{START}", period=period, engine="counted")


def once(held: int, experts_are: str) -> Iterator[Arm]:
    """Yield what is looked at in one order: all resident, eMoE with its loss, a check of the line.

    Args:
        held: Experts of a layer that stay after all were there.
        experts_are: Format of the experts.
    """
    for name in (experts_are, "int8", "int4"):
        yield Arm(
            f"all resident, {name}", "lru", slots="100%", weights_format=name, engine="compiled"
        )
    for p in (1, 40):
        yield Arm(
            "last 20, absent skipped",
            f"periodic:period={p},first=profile,staging=0",
            SKIP,
            period=p,
        )
    yield Arm(
        "all experts first, absent skipped",
        f"periodic:period=40,first=all,held={held},staging=0",
        SKIP,
        period=40,
        slots="100%",
    )
    yield Arm(
        "perfect prediction, replayed",
        "periodic:period=1,predictor=signal,first=profile",
        period=1,
    )
    for name in ("best_window", "light"):
        yield Arm(
            f"{name.replace('_', ' ')}, adaptive, replayed",
            f"periodic:period=2,predictor={name},adapt=true,first=profile",
            period=2,
        )
