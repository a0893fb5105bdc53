"""What cannot be done is refused in one line, before anything slow begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.simulator.errors import InputError
from moesim.validation.cells import check_disjoint, choose_system, split_list
from moesim.validation.commands import validate

app = typer.Typer()
app.command()(validate)


def refuse(*options: object) -> str:
    """Return the one line that refuses the options."""
    with pytest.raises(InputError) as told:
        CliRunner().invoke(app, [str(option) for option in options], catch_exceptions=False)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--backend", "cpx"], "no backend 'cpx'; did you mean 'cpu'? there are: cpu"),
        (["--routing", "free"], "no routing 'free'"),
        (["--hardware", "h100-sxm"], "--hardware is given without --runtime"),
        (["--runtime", "hf-eager"], "--runtime is given without --hardware"),
        (["--model", "x"], "give --model and --trace together"),
        (["--model", "x", "--trace", "nowhere.npz"], "--trace nowhere.npz: no such file"),
        (["--system", "lrru"], "no system or cache policy 'lrru'; did you mean 'lru'?"),
        (["--system", "lru,lru"], "'lru' is given twice"),
        (["--system", "lru,,lfu"], "an item is empty"),
        (["--system", "lru+none+on_demand+x"], "give a system, or cache+prefetch+schedule"),
        (["--vram", "lots"], "--vram lots: give shares of the experts or sizes"),
        (["--vram", "0%"], "--vram 0%: give shares"),
        (["-o", "nowhere/there"], "-o nowhere/there: there is no folder nowhere"),
        (["--plot", "x.gif"], "x.gif: a plot ends in one of"),
    ],
)
def test_bad_options_are_one_line(options: list[str], line: str) -> None:
    """Each names the option, its value and the way out."""
    assert line in refuse(*options)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Evidence goes into a folder."""
    path = tmp_path / "file"
    path.write_text("")
    assert refuse("-o", path).endswith("is a file; name a folder")


def test_systems_are_names_or_axes() -> None:
    """A name is a bundle; with plus signs the three axes are given one by one."""
    bundle: Any = choose_system("on-demand")
    custom: Any = choose_system("lfu+none+on_demand")
    assert (bundle.system, bundle.policies["cache"]) == ("on-demand", "transient")
    assert custom.system == "lfu+none+on_demand"
    assert custom.policies == {"cache": "lfu", "prefetch": "none", "schedule": "on_demand"}


def test_a_comma_may_belong_to_options() -> None:
    """What follows a comma as ``key=value`` stays with its policy."""
    text = "lru,lru+next_gate:horizon=1,width=4,on-demand"
    assert split_list("--system", text) == ["lru", "lru+next_gate:horizon=1,width=4", "on-demand"]


def test_a_request_is_not_both_fitted_on_and_tested(trace_of: Callable[..., Any]) -> None:
    """The tested request that was fitted on is named."""
    trace = trace_of(requests=3)
    check_disjoint(trace.select_requests([2]), trace.select_requests([0, 1]))
    with pytest.raises(InputError, match="request 1 of the tested trace was fitted on"):
        check_disjoint(trace.select_requests([1]), trace.select_requests([0, 1]))
