"""The replay: every prediction at its own moment, equal digests from equal seeds, crashes that change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.core.time import DAY, SystemClock
from headrace.features.offline import OfflineFeatures, histories_of
from headrace.pipelines.inspect import list_models, read_all, verify_ledger
from headrace.pipelines.project import Project
from headrace.pipelines.replay import ReplayPlan, ReplayResult, replay
from headrace.pipelines.reveals import read_reveals
from headrace.pipelines.stores import open_stores
from headrace.pipelines.supervise import supervised_replay
from headrace.pipelines.view import Silent
from headrace.serving.core import Core
from headrace.serving.log import read_segment, segments
from headrace.sources.values import arrow_type
from headrace.storage.ledger import Record

SPAN = ("2024-01-01", "2024-03-25")


def plan(
    span: tuple[str, str] = SPAN, *, faults: list[str] | None = None, seed: int = 3, freeze: str | None = None
) -> ReplayPlan:
    return ReplayPlan.parse(*span, seed=seed, faults=faults or [], freeze=freeze)


def records_of(project: Project, state: Path) -> list[Record]:
    with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
        return read_all(stores.ledger)


@pytest.fixture(scope="module")
def lived(orders: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReplayResult, Path]:
    state = tmp_path_factory.mktemp("lived") / "state"
    return replay(orders, plan(freeze="2024-02-20"), state=str(state), progress=Silent()), state


def test_the_loop_trains_gates_promotes_and_logs_every_answer(
    orders: Project, lived: tuple[ReplayResult, Path]
) -> None:
    result, state = lived
    kinds = Counter(record.kind for record in records_of(orders, state))
    assert result.predictions == 84 * 60
    assert 0 < result.by_model < result.predictions
    assert kinds["promotion"] >= 1
    assert kinds["retrained"] >= 2
    assert kinds["log.sealed"] == result.days == 84
    assert kinds["frozen"] == 1
    with open_stores(orders, str(state), clock=SystemClock(), write=False) as stores:
        logged = [p for s in segments(stores.predictions) for p in read_segment(stores.predictions, s)]
    assert len(logged) == result.predictions
    assert len({p.id for p in logged}) == result.predictions
    assert sum(not p.fallback for p in logged) == result.by_model
    assert verify_ledger(orders, state=str(state))["ok"]
    assert list_models(orders, state=str(state))["versions"][0]["gates"] is True


def offline_differs(project: Project, state: Path, limit: int) -> tuple[int, int]:
    """Compare logged features with the offline ones for the same rows and moments; return (compared, different)."""
    with open_stores(project, str(state), clock=SystemClock(), write=False) as stores:
        logged = [p for s in segments(stores.predictions) for p in read_segment(stores.predictions, s)]
        reveals = read_reveals(stores.tables, project.plan.sources)
    chosen = np.random.default_rng(0).permutation(len(logged))[:limit]
    asked = [logged[i] for i in chosen]
    rows = pa.table(
        {
            c.name: pa.array([p.request.get(c.name) for p in asked], arrow_type(c.dtype))
            for c in project.plan.rows.columns
        }
    )
    t = np.array([p.t for p in asked], np.int64)
    computed = OfflineFeatures(project.plan, histories_of(project.plan, reveals, 2**62)).compute(rows, t)
    different = 0
    for prediction, offline in zip(asked, computed.table(project.plan).to_pylist(), strict=True):
        different += [_bits(v) for v in prediction.features.values()] != [_bits(v) for v in offline.values()]
    return len(asked), different


def _bits(value: Any) -> Any:
    return np.float64(value).tobytes() if isinstance(value, float) else value


def test_what_was_served_is_what_training_would_see(orders: Project, lived: tuple[ReplayResult, Path]) -> None:
    assert offline_differs(orders, lived[1], 10_000) == (84 * 60, 0)


def test_two_weeks_of_flights_are_equal_online_and_offline(flights: Project, tmp_path: Path) -> None:
    result = replay(flights, plan(("2013-01-01", "2013-01-15")), state=str(tmp_path / "s"), progress=Silent())
    assert result.predictions == 12_126
    assert offline_differs(flights, tmp_path / "s", 10_000) == (10_000, 0)


def test_each_prediction_is_one_call_at_its_own_moment(
    orders: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    answer = Core.predict

    def counted(self: Core, row: Any, t: int, get: Any) -> Any:
        calls.append(t)
        return answer(self, row, t, get)

    monkeypatch.setattr(Core, "predict", counted)
    result = replay(orders, plan(("2024-01-01", "2024-01-11")), state=str(tmp_path / "s"), progress=Silent())
    assert len(calls) == result.predictions == 600
    assert calls == sorted(calls)
    assert len(set(calls)) > 500


def test_the_same_seed_gives_the_same_digests_and_another_one_others(
    orders: Project, lived: tuple[ReplayResult, Path], tmp_path: Path
) -> None:
    result, _ = lived
    again = in_another_process(orders, plan(freeze="2024-02-20"), tmp_path / "again", cores=1)
    assert again == result.digests
    other = replay(orders, plan(seed=4, freeze="2024-02-20"), state=str(tmp_path / "other"), progress=Silent())
    assert other.digests["models"] != result.digests["models"]


CHILD = """
import json, os, sys
from pathlib import Path
told = json.loads(sys.argv[1])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: told["cores"]])
from headrace.pipelines.project import load_project
from headrace.pipelines.replay import ReplayPlan, replay
from headrace.pipelines.view import Silent
project = load_project(told["target"], folder=Path(told["folder"]))
plan = ReplayPlan.parse(told["start"], told["end"], seed=told["seed"], faults=[], freeze=told["freeze"])
print(json.dumps(dict(replay(project, plan, state=told["state"], progress=Silent()).digests)))
"""


def in_another_process(project: Project, wanted: ReplayPlan, state: Path, *, cores: int) -> dict[str, str]:
    told = {"target": project.target, "folder": str(project.folder), "state": str(state), "cores": cores}
    told |= {"start": wanted.start.isoformat(), "end": wanted.end.isoformat(), "seed": wanted.seed}
    told |= {"freeze": None if wanted.freeze is None else wanted.freeze.isoformat()}
    command = [sys.executable, "-c", CHILD, json.dumps(told)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_killed_replay_goes_on_and_ends_as_if_nothing_had_happened(
    orders: Project, lived: tuple[ReplayResult, Path], tmp_path: Path
) -> None:
    wanted = plan(faults=["crash@2024-01-20", "crash@2024-02-02", "crash@2024-03-10"], freeze="2024-02-20")
    view = supervised_replay(orders, wanted, state=str(tmp_path / "s"), progress=Silent())
    assert view["digests"] == lived[0].digests
    assert verify_ledger(orders, state=str(tmp_path / "s"))["ok"]
    sealed = [r.subject for r in records_of(orders, tmp_path / "s") if r.kind == "log.sealed"]
    assert sealed == sorted(set(sealed))


def test_a_bad_day_stops_at_the_gate_and_nothing_of_it_reaches_features(orders: Project, tmp_path: Path) -> None:
    wanted = plan(("2024-01-01", "2024-01-15"), faults=["bad_data@2024-01-09"])
    replay(orders, wanted, state=str(tmp_path / "s"), progress=Silent())
    verdicts = [r for r in records_of(orders, tmp_path / "s") if r.kind == "verdict"]
    day = wanted.faults[0].day
    assert [v.body["action"] for v in verdicts if v.body["where"] == "delivery of 2024-01-09"] == ["stop"]
    with open_stores(orders, str(tmp_path / "s"), clock=SystemClock(), write=False) as stores:
        arrivals = read_reveals(stores.tables, orders.plan.sources)["Orders"]["_arrival"].to_numpy()
    assert not ((arrivals >= day) & (arrivals < day + DAY)).any()
    assert ((arrivals >= day - DAY) & (arrivals < day)).any()


def test_a_schema_change_halts_at_the_gate(orders: Project, tmp_path: Path) -> None:
    wanted = plan(("2024-01-01", "2024-01-12"), faults=["schema_change@2024-01-09"])
    replay(orders, wanted, state=str(tmp_path / "s"), progress=Silent())
    verdicts = [r.body for r in records_of(orders, tmp_path / "s") if r.kind == "verdict"]
    stopped = [v for v in verdicts if v["action"] == "stop"]
    # The day after counts no rows for the day that was stopped, and stops too: the gap is real.
    assert [v["where"] for v in stopped] == ["delivery of 2024-01-09", "delivery of 2024-01-10"]
    assert "hours: string" in stopped[0]["results"][0]["measured"]


def test_a_corrupted_candidate_is_stopped_without_labels(orders: Project, tmp_path: Path) -> None:
    rollout = orders.pipeline.rollout
    assert rollout is not None
    import headrace as hr

    pipeline = hr.Pipeline(
        model=orders.pipeline.model,
        decision=orders.pipeline.decision,
        gates=[hr.metric("auc") >= 0.6],
        endpoint=orders.pipeline.endpoint,
        rollout=hr.Rollout(
            unit=rollout.unit,
            steps=[hr.shadow("2d"), hr.canary(0.2, "1d", min_rows=5)],
            abort_if=[hr.live("prediction_psi", against="champion") > 0.2],
        ),
        retrain_on=orders.pipeline.retrain_on,
    )
    wanted = plan(("2024-01-01", "2024-03-10"), faults=["bad_model@2024-02-20"])
    replay(replace(orders, pipeline=pipeline), wanted, state=str(tmp_path / "s"), progress=Silent())
    records = records_of(orders, tmp_path / "s")
    corrupted = next(r.body["version"] for r in records if r.kind == "fault" and "version" in r.body)
    decisions = [r.body["decision"] for r in records if r.kind == "rollout" and r.subject == corrupted]
    assert decisions == ["begin", "abort"]
    assert corrupted not in [r.subject for r in records if r.kind == "promotion"]


def test_a_state_folder_of_another_replay_is_refused(orders: Project, tmp_path: Path) -> None:
    replay(orders, plan(("2024-01-01", "2024-01-03")), state=str(tmp_path / "s"), progress=Silent())
    with pytest.raises(Exception, match="holds another replay") as error:
        replay(orders, plan(("2024-01-01", "2024-01-04")), state=str(tmp_path / "s"), progress=Silent())
    assert "choose another --state" in str(error.value)
