"""What the author of a plug-in writes: the fixtures come with moesim."""

from stamp_collector.second_chance import SecondChance

from moesim.simulator.policies.base import Evictable, RunInfo
from moesim.simulator.testing import check_policy


def test_it_keeps_the_laws():
    """The policy passes moesim's own check."""
    report = check_policy(SecondChance)
    assert report.axis == "cache"


def test_one_that_was_used_goes_back(view):
    """The first that came is spared once if it was used."""
    policy = SecondChance(RunInfo(3, 6, 2, (1,) * 3, 9, None, None))
    offered: Evictable = {0, 1}
    for expert in (0, 1):
        policy.on_admit(expert, view)
    policy.on_touch(0, view)
    assert policy.choose_victim(offered, view) == 1


def test_it_survives_a_hostile_driver(adversarial_driver):
    """Copies that end in any order change nothing of the laws."""
    adversarial_driver(seed=3, cache=SecondChance, slots=8).run()


def test_the_trace_is_small(tiny_trace):
    """The fixture trace has prompt and decode steps of two tasks."""
    assert len(set(tiny_trace.task_R)) == 2
