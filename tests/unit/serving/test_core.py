"""One prediction: who answers when a version fails, what is flagged, what a cache may repeat; nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from headrace.core.errors import DataError, DefinitionError, Unavailable, UserCodeError
from headrace.core.identity import encode_key
from headrace.core.time import HOUR
from headrace.serving.definition import Endpoint, Threshold
from headrace.serving.log import find
from headrace.serving.record import CACHED, DEGRADED, ERROR, FALLBACK, Shadow
from headrace.serving.router import Routes, Variant

Make = Callable[..., Any]
ERRORS = [DataError("no number"), RuntimeError("no"), KeyError("x"), InvalidArgument("bad shape"), MemoryError()]


def test_the_champion_answers_and_the_threshold_decides(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.7)), decision=Threshold(0.7))
    answer = made.ask()
    assert (answer.score, answer.decision, answer.version, answer.variant) == (0.7, True, "m/v1", "champion")
    assert answer.flags == 0
    assert answer.latency_us > 0
    made.router.routes = Routes(constant("m/v2", 0.69))
    assert made.ask().decision is False
    assert bench(Routes(constant("m/v1", 0.7))).ask().decision is None


def test_the_rows_id_and_features_are_logged_as_they_were_served(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.7)))
    answer = made.ask(t=77, price=10.0, seats=5)
    assert answer.vector.to_dict()["per_seat"] == 5.0
    made.log.commit()
    logged = find(made.folder, answer.id)
    assert (logged.t, logged.row_id) == (77, encode_key(["r1"]))
    assert logged.features["per_seat"] == 5.0
    assert set(logged.status) == {"Zone.minutes[1h]"}  # nothing was ever known about the zone


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_where_the_candidate_raises_the_champion_answers(
    bench: Make, constant: Make, failing: Make, error: Exception
) -> None:
    made = bench(Routes(constant("m/v1", 0.4), failing("m/v2", error), share=1.0))
    answer = made.ask()
    assert (answer.score, answer.variant, answer.version) == (0.4, "champion", "m/v2")
    assert answer.flags == ERROR
    made.log.commit()
    assert find(made.folder, answer.id).flags == ERROR


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_shadow_that_raises_never_touches_the_answer(
    bench: Make, constant: Make, failing: Make, error: Exception
) -> None:
    alone = bench(Routes(constant("m/v1", 0.4))).ask()
    made = bench(Routes(constant("m/v1", 0.4), shadows=(failing("m/v2", error), constant("m/v3", 0.9))))
    answer = made.ask()
    assert (answer.score, answer.variant, answer.flags) == (alone.score, alone.variant, alone.flags)
    assert answer.shadows == (("m/v2", None), ("m/v3", 0.9))
    made.log.commit()
    assert find(made.folder, answer.id).shadows == (Shadow("m/v2", None), Shadow("m/v3", 0.9))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_counts_as_a_failure(bench: Make, constant: Make, score: float) -> None:
    made = bench(Routes(constant("m/v1", 0.4), constant("m/v2", score), share=1.0))
    assert (made.ask().score, made.ask().flags) == (0.4, ERROR)
    made.router.routes = Routes(constant("m/v1", 0.4), shadows=(constant("m/v2", score),))
    assert made.ask().shadows == (("m/v2", None),)


def test_without_a_champion_the_fallback_answers_and_is_flagged(bench: Make) -> None:
    answer = bench(Routes(), endpoint=Endpoint(fallback=0.3), decision=Threshold(0.2)).ask()
    assert (answer.score, answer.variant, answer.version, answer.flags) == (0.3, "fallback", "", FALLBACK)
    assert answer.decision is True


def test_a_failing_champion_is_replaced_by_the_fallback_and_both_are_flagged(bench: Make, failing: Make) -> None:
    answer = bench(Routes(failing("m/v1", ValueError())), endpoint=Endpoint(fallback=0.0)).ask()
    assert (answer.score, answer.variant, answer.version) == (0.0, "fallback", "m/v1")
    assert answer.flags == ERROR | FALLBACK


def test_where_every_version_fails_the_fallback_answers(bench: Make, failing: Make) -> None:
    routes = Routes(failing("m/v1", ValueError()), failing("m/v2", ValueError()), share=1.0)
    answer = bench(routes, endpoint=Endpoint(fallback=0.1)).ask()
    assert (answer.score, answer.flags) == (0.1, ERROR | FALLBACK)


@pytest.mark.parametrize("there", [True, False])
def test_without_a_fallback_it_says_so_and_logs_nothing(bench: Make, failing: Make, there: bool) -> None:
    made = bench(Routes(failing("m/v1", ValueError()) if there else None))
    with pytest.raises(Unavailable, match="no model can answer") as caught:
        made.ask()
    assert caught.value.got == ("version m/v1 failed" if there else "no champion")
    assert "fallback" in (caught.value.next_step or "")
    assert made.log.count == 0


def test_an_equal_request_within_the_time_to_live_is_answered_from_the_cache(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4)), endpoint=Endpoint(cache="1h"))
    scorer = made.router.routes.champion.scorer
    assert made.ask(t=0).flags == 0
    scorer.score = 0.9
    assert [(a.score, a.flags) for a in [made.ask(t=HOUR)]] == [(0.4, CACHED)]
    other = made.ask(t=HOUR, price=1.0)
    assert (other.score, other.flags) == (0.9, 0)
    late = made.ask(t=HOUR + 1)
    assert (late.score, late.flags) == (0.9, 0)
    earlier = made.ask(t=5)  # a moment before what is held: it must not be answered from the future
    assert earlier.flags == 0
    assert made.log.count == 5


def test_the_cache_belongs_to_a_version_and_keeps_no_failure(bench: Make, constant: Make, failing: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4)), endpoint=Endpoint(cache="1h", fallback=0.5))
    made.ask()
    made.router.routes = Routes(constant("m/v2", 0.6))
    assert (made.ask().score, made.ask().flags) == (0.6, CACHED)
    made.router.routes = Routes(failing("m/v3", ValueError()))
    assert [made.ask().flags for _ in range(2)] == [ERROR | FALLBACK] * 2


def test_without_a_cache_every_request_is_scored(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4)))
    assert [made.ask().flags for _ in range(2)] == [0, 0]


def test_the_share_goes_by_the_unit_of_the_row(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4), constant("m/v2", 0.6), share=0.5, salt="r"))
    once = [made.ask(ride=f"r{i}").variant for i in range(200)]
    assert once == [made.ask(ride=f"r{i}", price=2.0).variant for i in range(200)]
    assert 60 < once.count("candidate") < 140
    assert all(made.ask(ride=f"r{i}").shadows for i in range(5))


def test_a_feature_that_cannot_be_computed_fails_its_own_row(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4)), endpoint=Endpoint(fallback=0.5))
    with pytest.raises(UserCodeError, match="per_seat raised ZeroDivisionError"):
        made.ask(seats=3)
    assert made.log.count == 0
    assert made.ask(seats=2).flags == 0


def test_a_replaced_route_is_used_by_the_next_row(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4)))
    made.router.routes = Routes(Variant("m/v9", constant("m/v9", 0.8).scorer))
    assert (made.ask().version, made.ask().score) == ("m/v9", 0.8)


def test_without_the_online_store_the_model_answers_with_nothing_stored_and_is_marked(
    bench: Make, constant: Make
) -> None:
    made = bench(Routes(constant("m/v1", 0.4)), endpoint=Endpoint(on_missing="default", cache="1h"))
    answer = made.core.predict(made.signature.decode(made.row), 0, None)
    assert (answer.score, answer.variant, answer.flags) == (0.4, "champion", DEGRADED)
    assert made.ask(t=1).flags == 0  # a degraded score is not kept for equal requests


def test_without_the_online_store_a_fallback_answers_instead_of_the_model(bench: Make, constant: Make) -> None:
    made = bench(Routes(constant("m/v1", 0.4), shadows=(constant("m/v2", 0.5),)), endpoint=Endpoint(fallback=0.2))
    answer = made.core.predict(made.signature.decode(made.row), 0, None)
    assert (answer.score, answer.variant, answer.version) == (0.2, "fallback", "m/v1")
    assert (answer.flags, answer.shadows) == (DEGRADED | FALLBACK, ())


def test_an_endpoint_says_what_it_cannot_do_while_features_are_missing() -> None:
    with pytest.raises(DefinitionError, match="cannot do that") as caught:
        Endpoint(on_missing="defualt")  # type: ignore[arg-type]
    assert caught.value.next_step == "did you mean default?"
    with pytest.raises(DefinitionError, match="without a fallback"):
        Endpoint(on_missing="fallback")
    assert (Endpoint().on_missing, Endpoint(fallback=0.0).on_missing) == ("fail", "fallback")
