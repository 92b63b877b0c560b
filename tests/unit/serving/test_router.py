"""Routes: one unit gets one version for as long as the share holds, and a larger share only adds units."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.identity import unit_interval
from headrace.features.record import FeatureVector
from headrace.serving.router import Router, Routes, Variant

Make = Callable[[str, float], Variant]


class Half:
    def score_one(self, vector: FeatureVector) -> float:
        return 0.5


OLD, NEW = Variant("m/v1", Half()), Variant("m/v2", Half())
UNITS = [f"u{i}" for i in range(4_000)]


def to_candidate(share: float, salt: str = "r1") -> set[str]:
    routes = Routes(OLD, NEW, share, salt)
    return {u for u in UNITS if routes.choose(u) == (NEW, "candidate")}


@given(unit=st.text(), salt=st.text(max_size=10), share=st.floats(0, 1))
def test_a_unit_keeps_its_version(unit: str, salt: str, share: float) -> None:
    routes = Routes(OLD, NEW, share, salt)
    first = routes.choose(unit)
    assert all(Routes(OLD, NEW, share, salt).choose(unit) == first for _ in range(3))
    assert first in ((OLD, "champion"), (NEW, "candidate"))


@given(unit=st.text(), salt=st.text(max_size=10), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_larger_share_only_adds_units(unit: str, salt: str, shares: list[float]) -> None:
    less, more = (Routes(OLD, NEW, share, salt).choose(unit)[1] for share in shares)
    assert (less, more) != ("candidate", "champion")


def test_the_share_is_the_share_of_the_units() -> None:
    assert to_candidate(0.0) == set()
    assert to_candidate(1.0) == set(UNITS)
    assert 0.17 < len(to_candidate(0.2)) / len(UNITS) < 0.23  # five standard deviations each side


def test_each_rollout_draws_anew() -> None:
    both = to_candidate(0.2, "r1") & to_candidate(0.2, "r2")
    assert 80 < len(both) < 250  # 160 expected of independent draws


def test_the_draw_stays_what_it_was_in_earlier_releases() -> None:
    assert unit_interval("rollout-1", "UA1545") == 0.8066811676865351


def test_without_a_candidate_the_champion_answers() -> None:
    assert Routes(OLD, None, 1.0).choose("u") == (OLD, "champion")
    assert Routes(None, None).choose("u") == (None, "champion")
    assert Router().routes.choose("u") == (None, "champion")


def test_every_other_version_scores_beside_once() -> None:
    shadow = Variant("m/v3", Half())
    routes = Routes(OLD, NEW, 0.5, "r", (shadow, OLD))
    assert {v.version for v in routes.others(OLD)} == {"m/v2", "m/v3"}
    assert {v.version for v in routes.others(NEW)} == {"m/v1", "m/v3"}
    assert [v.version for v in routes.others(None)].count("m/v1") == 1
