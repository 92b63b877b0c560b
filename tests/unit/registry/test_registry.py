"""The registry: what is promoted passed its gates, races have one winner, rollback goes back, all of it is recorded."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from headrace.core.errors import Conflict, Corrupt, DataError, GateRefused, HeadraceError, Refused
from headrace.core.time import Instant, VirtualClock
from headrace.evaluation.record import Evaluation, GateResult
from headrace.features.record import FeatureColumn
from headrace.models.convert import make_servable
from headrace.models.definition import model
from headrace.models.encoder import Encoder
from headrace.models.servable import Servable
from headrace.registry.run import Registry
from headrace.storage.blobs import open_blobs
from headrace.storage.ledger import Ledger, open_ledger
from headrace.training.record import RunRecord

PASSED = Evaluation(100, (GateResult('metric("auc") >= 0.5', "metric", True, 0.7, 0.5),), {"auc": 0.7}, None)
FAILED = Evaluation(100, (GateResult('metric("auc") >= 0.9', "metric", False, 0.7, 0.9),), {"auc": 0.7}, None)
BY: dict[str, Any] = {"why": "a test", "actor": "ada"}


def servable_of(seed: int) -> Servable:
    random = np.random.default_rng(seed)
    table = pa.table({"a": random.normal(size=100), "b": random.normal(size=100)})
    encoder = Encoder.learn([FeatureColumn(name, "float", "row") for name in ("a", "b")], table)
    matrix = encoder.encode(table)
    fitted = LogisticRegression().fit(matrix, (matrix[:, 0] + random.normal(size=100) > 0).astype(int))
    return make_servable(model(fitted), encoder, matrix, run=f"run{seed}")


SERVABLES = [servable_of(seed) for seed in range(4)]


def run_of(seed: int) -> RunRecord:
    metrics = {"test": {"auc": 0.7}}
    return RunRecord(
        f"run{seed}", "risk", "finished", 0, 0, "d", {"rows": 1}, {}, seed, {}, metrics, {}, {}, [], [], None
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(f"sqlite:{tmp_path / 'ledger'}", clock=VirtualClock(Instant.parse("2013-03-01"))) as opened:
        yield opened


@pytest.fixture
def registry(ledger: Ledger, tmp_path: Path) -> Registry:
    return Registry(ledger, open_blobs(f"file:{tmp_path / 'blobs'}"), "flights")


def registered(registry: Registry, count: int = 3, evaluation: Evaluation | None = PASSED) -> list[str]:
    return [registry.register(SERVABLES[i], run_of(i), evaluation).name for i in range(count)]


def test_versions_are_numbered_and_the_same_model_is_entered_once(registry: Registry) -> None:
    assert registered(registry) == ["flights/v1", "flights/v2", "flights/v3"]
    again = registry.register(SERVABLES[1], run_of(1), PASSED)
    assert again == registry.version("v2") and len(registry.versions()) == 3
    assert (again.stage, again.run, again.metrics, again.number) == ("development", "run1", {"test": {"auc": 0.7}}, 2)
    assert again.manifest == SERVABLES[1].manifest.digest and again.size == SERVABLES[1].size
    assert registry.servable("v2", trial=False).content == SERVABLES[1].content


def test_pipelines_of_one_ledger_do_not_meet(registry: Registry) -> None:
    other = Registry(registry.ledger, registry.blobs, "churn")
    registered(registry, 2)
    assert other.register(SERVABLES[0], run_of(0), PASSED).name == "churn/v1"
    other.promote("v1", **BY)
    assert registry.champion() is None and len(registry.versions()) == 2
    with pytest.raises(DataError, match="no such version"):
        registry.version("churn/v1")


def test_stages_follow_from_what_happened(registry: Registry) -> None:
    registered(registry)
    registry.challenge("v1", **BY)
    assert [v.stage for v in registry.versions()] == ["staging", "development", "development"]
    registry.promote("v1", **BY)
    assert registry.challenger() is None
    registry.challenge("v2", **BY)
    registry.promote("v2", **BY)
    registry.archive("v3", **BY)
    assert [v.stage for v in registry.versions()] == ["staging", "production", "archived"]
    champion = registry.champion()
    assert champion is not None and champion.name == "flights/v2"
    kinds = [record.kind for record in registry.history()]
    assert kinds == ["version", "gates"] * 3 + ["challenger", "promotion"] * 2 + ["archive"]
    assert registry.ledger.verify().ok


def test_failed_gates_refuse_a_promotion_and_name_themselves(registry: Registry) -> None:
    registered(registry, 1, FAILED)
    with pytest.raises(GateRefused) as caught:
        registry.promote("v1", **BY)
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "version flights/v1 did not pass its gates\n"
        '  where:    metric("auc") >= 0.9\n'
        '  got:      FAILED  metric("auc") >= 0.9: measured 0.7\n'
        "  expected: every gate passed\n"
        "  next:     headrace explain flights/v1, or headrace promote flights/v1 --force --why REASON"
    )
    assert registry.champion() is None


def test_force_overrules_gates_with_a_reason_and_is_recorded(registry: Registry) -> None:
    registered(registry, 1, FAILED)
    with pytest.raises(Refused, match="a promotion needs a reason"):
        registry.promote("v1", why=" ", actor="ada", force=True)
    record = registry.promote("v1", why="the old one burns", actor="ada", force=True)
    assert record.body["forced"] is True and record.body["failed_gates"] == ['metric("auc") >= 0.9']
    assert (record.actor, record.body["why"]) == ("ada", "the old one burns")


def test_a_version_without_gates_is_not_promoted_and_the_newest_decision_counts(registry: Registry) -> None:
    registered(registry, 1, None)
    with pytest.raises(GateRefused, match="was not evaluated"):
        registry.promote("v1", **BY)
    registry.evaluated("v1", PASSED)
    registry.evaluated("v1", FAILED)
    with pytest.raises(GateRefused, match="did not pass its gates"):
        registry.promote("v1", **BY)
    registry.evaluated("v1", PASSED)
    registry.promote("v1", **BY)


def test_rollback_goes_back_step_by_step_and_to_any_version_that_served(registry: Registry) -> None:
    names = registered(registry, 4)
    for name in names[:3]:
        registry.promote(name, **BY)
    assert registry.rollback(**BY).subject == "flights/v2"
    assert registry.rollback(**BY).subject == "flights/v1"
    with pytest.raises(Refused, match="there is no earlier champion"):
        registry.rollback(**BY)
    assert registry.rollback("v3", **BY).body["replaced"] == "flights/v1"
    with pytest.raises(Refused, match="only a version that served before"):
        registry.rollback("v4", **BY)
    assert [v.stage for v in registry.versions()] == ["staging", "staging", "production", "development"]


def test_without_a_champion_there_is_nothing_to_roll_back(registry: Registry) -> None:
    with pytest.raises(Refused, match="there is no earlier champion"):
        registry.rollback(**BY)


def test_refused_moves_change_nothing(registry: Registry) -> None:
    registered(registry, 2)
    registry.promote("v1", **BY)
    registry.archive("v2", **BY)
    before = registry.ledger.head()
    for move in (
        lambda: registry.promote("v1", **BY),
        lambda: registry.promote("v2", **BY),
        lambda: registry.archive("v1", **BY),
        lambda: registry.challenge("v1", **BY),
        lambda: registry.challenge("v2", **BY),
        lambda: registry.challenge(None, **BY),
    ):
        with pytest.raises(Refused):
            move()
    with pytest.raises(DataError) as caught:
        registry.promote("v7", **BY)
    assert "no such version" in str(caught.value)
    assert registry.ledger.head() == before


def test_a_challenge_ends(registry: Registry) -> None:
    registered(registry, 2)
    registry.challenge("v1", **BY)
    registry.challenge(None, **BY)
    assert registry.challenger() is None
    assert registry.history()[-1].body == {
        "challenger": None,
        "replaced": "flights/v1",
        "why": "a test",
        "evidence": {},
    }


def test_a_decision_against_another_champion_is_a_conflict(registry: Registry) -> None:
    registered(registry)
    registry.promote("v1", over=None, **BY)
    registry.promote("v2", over="flights/v1", **BY)
    for over in ("flights/v1", None):
        with pytest.raises(Conflict):
            registry.promote("v3", over=over, **BY)
    champion = registry.champion()
    assert champion is not None and champion.name == "flights/v2"


def test_of_racing_promotions_exactly_one_wins(registry: Registry, tmp_path: Path) -> None:
    names = registered(registry, 4)
    barrier, outcomes = threading.Barrier(4), {}

    def race(name: str) -> None:
        clock = VirtualClock(Instant.parse("2013-03-01"))
        with open_ledger(f"sqlite:{tmp_path / 'ledger'}", clock=clock) as mine:
            other = Registry(mine, registry.blobs, "flights")
            barrier.wait()
            try:
                outcomes[name] = other.promote(name, over=None, **BY).kind
            except HeadraceError as error:
                outcomes[name] = error.code

    threads = [threading.Thread(target=race, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == ["conflict", "conflict", "conflict", "promotion"]
    champion = registry.champion()
    assert champion is not None and outcomes[champion.name] == "promotion"
    assert [v.stage for v in registry.versions()].count("production") == 1
    assert registry.ledger.verify().ok


def test_damaged_files_are_refused_at_register_promote_and_rollback(registry: Registry, tmp_path: Path) -> None:
    swapped = Servable(SERVABLES[0].manifest, SERVABLES[1].content)
    with pytest.raises(Corrupt, match="is not what was registered"):
        registry.register(swapped, run_of(0), PASSED)
    registered(registry, 2)
    registry.promote("v1", **BY)
    registry.promote("v2", **BY)
    digest = SERVABLES[0].manifest.files[0].sha256
    (tmp_path / "blobs" / digest[:2] / digest[2:]).write_bytes(b"other bytes")
    for move in (lambda: registry.rollback(**BY), lambda: registry.servable("v1")):
        with pytest.raises(Corrupt):
            move()
    champion = registry.champion()
    assert champion is not None and champion.name == "flights/v2"


def test_a_manifest_names_its_run(registry: Registry) -> None:
    registered(registry, 1)
    loaded = registry.servable("v1")
    assert loaded.manifest == dataclasses.replace(SERVABLES[0].manifest) and loaded.manifest.run == "run0"
