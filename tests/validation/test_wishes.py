"""What cannot be done is refused in one line, before anything slow begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.backends.sources import Source
from moesim.simulator.errors import InputError
from moesim.validation.cells import check_disjoint, choose_system, split_list
from moesim.validation.commands import validate
from moesim.validation.provenance import commit_of
from moesim.validation.wishes import Wishes, check_wishes

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
        (["--vram", "lots"], "--vram lots: give a size, such as 12GiB"),
        (["--vram", "25%"], "--vram 25%: give a size, such as 12GiB; a share of the experts is"),
        (["--slots", "0%"], "--slots 0%: give a number of experts or a share, such as 25%"),
        (["--slots", "12GiB"], "--slots 12GiB: give a number of experts or a share"),
        (["--slots", "0"], "--slots 0: give a number"),
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
    guarded: Any = choose_system("split/lru+none+resident_first")
    assert guarded.policies["cache"] == "split/lru"


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


def test_a_trace_may_be_a_folder(tmp_path: Path) -> None:
    """A chunked trace is a folder: it is not refused as missing, an absent path is."""
    model = Source("olmoe", "random", None, None)
    check_wishes(wishes_with(source=model, trace=tmp_path))
    with pytest.raises(InputError, match="no such file"):
        check_wishes(wishes_with(source=model, trace=tmp_path / "absent"))


def test_budgets_are_shares_numbers_and_sizes() -> None:
    """Slots are a share or a number and VRAM a size, as everywhere; 25 and 50 % if left out."""
    assert wishes_with().budgets == ["25%", "50%"]
    assert wishes_with(slots="25%,12").budgets == ["25%", "12"]
    assert wishes_with(vram="12GiB").budgets == ["12GiB"]
    assert wishes_with(slots="50%", vram="12GiB").budgets == ["50%", "12GiB"]


def wishes_with(**given: Any) -> Wishes:
    """Return wishes that are the command's own but for these."""
    options = "source trace system vram slots hardware runtime warm tokens minutes output"
    nothing = dict.fromkeys(options.split())
    return Wishes(**(nothing | {"backend": "cpu", "routing": "forced", "repeats": 1} | given))


def test_the_commit_is_what_the_command_says() -> None:
    """``--commit`` names a copy without history; no variable of the environment does."""
    assert commit_of("0123abc") == "0123abc"


def test_no_variable_changes_what_evidence_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option git is asked, whatever the environment holds."""
    monkeypatch.setenv("MOESIM_COMMIT", "forged")
    assert commit_of(None) != "forged"
