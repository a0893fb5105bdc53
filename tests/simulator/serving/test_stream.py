"""What ``--arrivals`` may say, and what comes of it."""

from pathlib import Path

import numpy as np
import pytest

from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.serving.arrivals import Users
from moesim.simulator.serving.spec import Serving, parse_slo
from moesim.simulator.serving.stream import RequestStream, stream, with_files
from moesim.simulator.terms import Slo
from moesim.simulator.testing import tiny_trace

FOREVER_NS = 1 << 62


def times_ns(found: RequestStream) -> list[int]:
    """Return all arrival times of an open stream."""
    return [at_ns for _, at_ns in found.new_arrivals().take(FOREVER_NS)]


def test_poisson_arrivals_have_the_rate_and_the_scatter_of_their_name() -> None:
    """Gaps of 20,000 requests have mean and deviation 1/rate, within four standard errors."""
    gaps = np.diff(times_ns(stream("poisson:rate=4,requests=20000", tiny_trace(), seed=1)))
    error = 4 / np.sqrt(20_000)
    assert np.mean(gaps) / 1e9 == pytest.approx(1 / 4, rel=error)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1, abs=3 * error)


def test_gamma_arrivals_come_in_bursts() -> None:
    """The gaps vary three times their mean, which stays that of the rate."""
    found = stream("gamma:rate=4,cv=3,requests=40000", tiny_trace(), seed=2)
    gaps = np.diff(times_ns(found))
    assert np.mean(gaps) / 1e9 == pytest.approx(1 / 4, rel=0.06)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(3, rel=0.06)


def test_another_seed_gives_other_times_and_the_same_the_same() -> None:
    """Arrivals are drawn from the seed alone."""
    spec = "poisson:rate=4,requests=9"
    first, again, other = (times_ns(stream(spec, tiny_trace(), seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_log_gives_times_and_lengths(tmp_path: Path) -> None:
    """A recorded log comes twice as fast if so asked; only as many requests as wanted."""
    path = tmp_path / "own.csv"
    path.write_text("arrived_s,prompt_tokens,output_tokens\n5,3,1\n6,4,2\n8,5,3\n")
    found = stream(f"file:{path},speed=2", tiny_trace(), requests=2)
    assert times_ns(found) == [0, 500_000_000]
    assert found.drawing.prompt_tokens_R == [3, 4]
    assert found.drawing.output_tokens_R == [1, 2]
    assert found.text == "file:own.csv,speed=2"
    taken = stream(f"poisson:rate=1,requests=4,lengths={path}", tiny_trace())
    assert taken.drawing.prompt_tokens_R == [3, 4, 5, 3]


def test_lengths_may_be_the_same_for_all() -> None:
    """``prompt`` and ``output`` set every request's."""
    found = stream("users:requests=2,prompt=7,output=5", tiny_trace())
    assert found.drawing.prompt_tokens_R == [7, 7]
    assert found.drawing.output_tokens_R == [5, 5]


def test_users_ask_again_once_answered() -> None:
    """Two users of three requests: the third comes when one was answered and has thought."""
    users = Users(2, 3, think_ns=5)
    assert users.take(0) == [(0, 0), (1, 0)]
    assert users.next_ns is None
    users.ended(10)
    assert users.next_ns == 15
    assert users.take(14) == []
    assert users.take(20) == [(2, 15)]
    users.ended(30)
    assert users.next_ns is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("posson:rate=2", "no kind of arrivals 'posson'; did you mean 'poisson'?"),
        ("poisson:rats=2", "no option of poisson arrivals 'rats'; did you mean 'rate'?"),
        ("poisson:rate=2", "how many requests? Add requests=N"),
        ("poisson:requests=2", "rate is missing; add rate=NUMBER"),
        ("poisson:rate=fast,requests=2", "rate=fast: expected a number above 0"),
        ("poisson:rate=inf,requests=2", "rate=inf: expected a number above 0"),
        ("poisson:rate,requests=2", "option rate has no value"),
        ("users:users=0,requests=2", "users=0: expected a count above 0"),
        ("users:requests=2,prompt=3", "give both prompt=N and output=N"),
        ("users:requests=2,prompt=3,lengths=x.csv", "give lengths=FILE or prompt, not both"),
        ("users:requests=2,mix=a", "mix=a: expected TASK:WEIGHT"),
        ("users:requests=2,mix=alpha:0", "mix=alpha:0: expected TASK:WEIGHT"),
        ("users:requests=2,order=any", "order=any: expected recorded or shuffled"),
        ("file:", "which file? Write file:PATH"),
        ("poisson:rate=5,rate=9,requests=2", "rate is given twice"),
        ("users:think=-1,requests=2", "think=-1: expected a number of at least 0"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    """The option, its value and the way out stand in one line."""
    with pytest.raises((InputError, UnknownNameError)) as caught:
        stream(text, tiny_trace())
    assert message in str(caught.value)


def test_two_counts_of_requests_are_refused() -> None:
    """A count in the spec and another beside it cannot both be meant."""
    with pytest.raises(InputError, match="requests=6.*--requests 3: give one of them"):
        stream("poisson:rate=5,requests=6", tiny_trace(), requests=3)


def test_a_log_with_fewer_requests_than_asked_for_says_so(tmp_path: Path) -> None:
    """All of it is served, and a note tells how many that is."""
    path = tmp_path / "own.csv"
    path.write_text("arrived_s,prompt_tokens,output_tokens\n5,3,1\n6,4,2\n8,5,3\n")
    found = stream(f"file:{path}", tiny_trace(), requests=50)
    assert found.requests == 3
    assert "own.csv has 3 requests, not 50" in found.drawing.notes
    assert not any("own.csv" in note for note in stream(f"file:{path}", tiny_trace()).drawing.notes)


def test_users_may_think_for_no_time() -> None:
    """The default can be said."""
    assert stream("users:requests=2,think=0", tiny_trace()).requests == 2


def test_files_of_a_spec_can_be_called_otherwise() -> None:
    """Results name files without their folders, sweeps find them from their own."""
    text = "poisson:rate=1,lengths=a/b.csv"
    assert with_files(text, lambda path: f"/x/{path}") == "poisson:rate=1,lengths=/x/a/b.csv"
    assert with_files("users:users=2", lambda path: path.name) == "users:users=2"


def test_promises_are_read_in_milliseconds_by_task() -> None:
    """What stands without a task is for any other."""
    found = parse_slo(["ttft=500,tpot=50", "go:e2e=2.5"])
    assert found == {"": Slo(500_000_000, 50_000_000), "go": Slo(e2e_ns=2_500_000)}


def test_promises_to_one_task_add_up_and_none_is_made_twice() -> None:
    """A second mention of the task adds to it; of the same time it is refused."""
    assert parse_slo(["ttft=500", "tpot=50"]) == {"": Slo(500_000_000, 50_000_000)}
    for texts in (["ttft=1", "ttft=9"], ["go:ttft=1,ttft=9"]):
        with pytest.raises(InputError, match="--slo .*ttft is given twice"):
            parse_slo(texts)


@pytest.mark.parametrize("text", ["ttft", "ttft=0", "soon=5", "ttft=x", ""])
def test_a_promise_that_cannot_be_read_is_named(text: str) -> None:
    """The three names are listed."""
    with pytest.raises(InputError, match="expected .TASK:.ttft=MS,tpot=MS,e2e=MS"):
        parse_slo([text])


def test_what_is_reserved_is_one_of_two() -> None:
    """A third is refused by name."""
    with pytest.raises(InputError, match="--kv-reserve all: expected whole or prompt"):
        Serving("users:requests=2", reserve="all")
