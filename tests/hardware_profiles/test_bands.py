"""How bands combine: in quadrature within a product, by weight over a sum."""

import pytest

from moesim.hardware_profiles.bands import Part, Term, Terms
from moesim.hardware_profiles.figures import Figure, Kind, weakest


def figure(band_ppm: int, evidence: Kind = "estimated") -> Figure[int]:
    """Return a figure of that band."""
    return Figure[int].model_validate(
        {"value": 1, "evidence": evidence, "source": "for a test", "band": f"{band_ppm}ppm"}
    )


def test_independent_factors_add_in_quadrature() -> None:
    """3 % and 4 % of one product are 5 %."""
    part = Part(10.0, {"a": figure(30_000), "b": figure(40_000)})
    assert pytest.approx(0.05) == part.band


def test_parts_of_a_sum_add_by_weight() -> None:
    """A tenth of the time at 50 % and the rest at 10 % are 14 %."""
    term = Term([Part(1.0, {"a": figure(500_000)}), Part(9.0, {"b": figure(100_000)})])
    assert pytest.approx(0.14) == term.band
    assert term.explain() == "±14% estimated, most of it b (for a test)"


def test_a_part_without_time_does_not_count() -> None:
    """Neither its band nor its evidence."""
    sure = figure(10_000, evidence="datasheet")
    term = Term([Part(0.0, {"a": figure(500_000)}), Part(9.0, {"b": sure})])
    assert pytest.approx(0.01) == term.band
    assert term.evidence == "datasheet"


def test_a_time_that_costs_nothing_is_exact() -> None:
    """No part, no band."""
    assert Term([]).band == 0.0
    assert Term([]).evidence == "measured"
    assert Term([]).explain() == "±0%"


def test_a_guess_has_a_band_at_least() -> None:
    """What no figure covers widens the band and weakens the evidence."""
    sure = figure(10_000, evidence="datasheet")
    term = Term([Part(1.0, {"a": sure})], least_band=0.25)
    assert term.band == 0.25
    assert term.evidence == "estimated"


def test_a_run_is_judged_by_what_it_consists_of() -> None:
    """A run of copies alone has the copies' band, a mixed one lies between."""
    terms = Terms(
        copy=Term([Part(1.0, {"a": figure(100_000, evidence="datasheet")})]),
        host=Term([Part(1.0, {"b": figure(500_000)})]),
    )
    assert pytest.approx(0.1) == terms.band_for({"copy": 7, "host": 0})
    assert terms.evidence_for({"copy": 7, "host": 0}) == "datasheet"
    assert pytest.approx(0.3) == terms.band_for({"copy": 5, "host": 5})
    assert terms.evidence_for({"copy": 5, "host": 5}) == "estimated"
    assert pytest.approx(0.5) == terms.band_for({"copy": 0, "cpu": 0})
    assert pytest.approx(0.5) == terms.band
    assert terms.evidence == "estimated"


def test_a_chain_is_as_strong_as_its_weakest_link() -> None:
    """Measured is stronger than a datasheet, a datasheet than an estimate."""
    assert weakest(["measured", "datasheet"]) == "datasheet"
    assert weakest(["measured", "estimated", "datasheet"]) == "estimated"
