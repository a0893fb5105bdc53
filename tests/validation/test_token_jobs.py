"""Jobs of one token, predicted and executed, by kind."""

from moesim.simulator.results.timeline import TRACKS
from moesim.validation.evidence import Job
from moesim.validation.token_jobs import Kind, compare_jobs

GPU, LINK = TRACKS["gpu"], TRACKS["h2d"]


def token(copy_ns: int, wait_ns: int, run_ns: int, turn_ns: int) -> list[Job]:
    """Return two layers of two copies each, and a run after the second copy of each."""
    jobs, at_ns = [], 1_000
    for layer in range(2):
        for expert in range(2):
            name = f"copy L{layer} E{expert} (demand)"
            jobs.append(Job(track=LINK, name=name, begin_ns=at_ns, end_ns=at_ns + copy_ns))
            at_ns += copy_ns + 10
        begin_ns = at_ns - 10 + wait_ns
        end_ns = begin_ns + run_ns
        jobs.append(
            Job(track=GPU, name=f"run L{layer} 2 experts", begin_ns=begin_ns, end_ns=end_ns)
        )
        at_ns = end_ns + turn_ns
    return jobs


def test_each_kind_of_job_and_distance_is_compared() -> None:
    """Copies, gaps, runs, what a run waits, layer to layer and both ends of a token are told."""
    ours, theirs = token(30_000, 0, 2_000, 50_000), token(40_000, 5_000, 2_500, 50_000)
    last = [max(job.end_ns for job in jobs) for jobs in (ours, theirs)]
    found = compare_jobs(ours, theirs, (last[0] + 100, last[1] + 400))
    assert found == [
        Kind("copy", 4, 4, 30_000, 40_000),
        Kind("run after its copy", 2, 2, 0, 5_000),
        Kind("run of 2, alone", 2, 2, 2_000, 2_500),
        Kind("last run to token", 1, 1, 100, 400),
        Kind("gap between copies", 2, 2, 10, 10),
        Kind("layer to layer", 1, 1, 50_000, 50_000),
        Kind("token to first job", 1, 1, 1_000, 1_000),
    ]
    assert [kind.total_ns for kind in found[:3]] == [40_000, 10_000, 1_000]


def test_a_run_that_a_copy_overlaps_is_one_beside_copies() -> None:
    """It is compared with its like alone; a kind that one side lacks is left out."""
    copy = Job(track=LINK, name="copy L0 E1 (prefetch)", begin_ns=0, end_ns=900)
    run = Job(track=GPU, name="run L0 1 expert", begin_ns=500, end_ns=700)
    later = Job(track=GPU, name="run L0 1 expert", begin_ns=950, end_ns=1_150)
    found = compare_jobs([copy, run], [copy, run, later], (2_000, 2_000))
    assert {kind.name: (kind.predicted, kind.executed) for kind in found} == {
        "copy": (1, 1),
        "run of 1, beside copies": (1, 1),
        "token to first job": (1, 1),
        "last run to token": (1, 1),
    }
    assert compare_jobs([], [], (1, 1)) == []
