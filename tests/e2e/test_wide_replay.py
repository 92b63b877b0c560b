"""A table of 150 features that another system exports in whole copies: a run and a replay serve what training sees."""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from headrace.cli.template import write_project
from headrace.core.time import DAY, Instant
from headrace.pipelines.project import load_project
from headrace.pipelines.replay import ReplayPlan, replay
from headrace.pipelines.run import run
from headrace.pipelines.view import Silent
from tests.e2e.test_replay import offline_differs

COLUMNS = 150
EXPORT = f"""
class Vectors(hr.Source, history="snapshots"):
    shop: hr.Column[str] = hr.entity()
    made: hr.Column[hr.Instant] = hr.event_time()
    __annotations__ |= {{f"e{{i}}": "hr.Column[float | None]" for i in range({COLUMNS})}}
    vars().update({{f"e{{i}}": hr.column() for i in range({COLUMNS})}})


Embedding = hr.precomputed(Vectors, entity=Vectors.shop, max_age="9d")


@hr.on_demand("""
START = Instant.parse("2024-01-01")


def test_what_a_replay_serves_is_what_training_sees(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    write_project(str(folder))
    code = (folder / "orders.py").read_text()
    code = code.replace("\n@hr.on_demand(", EXPORT, 1).replace("Shop, weekday]", "Shop, Embedding, weekday]")
    code = code.replace('hr.metric("log_loss").beats_champion(confidence=0.95), ', "").replace("trials=5", "trials=1")
    (folder / "orders.py").write_text(code)
    drawn = random.Random(3)
    with (folder / "vectors.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["shop", "made", *(f"e{i}" for i in range(COLUMNS))])
        for week in range(8):
            for shop in drawn.sample(range(20), 15):  # a quarter of the shops is missing, each week another
                cells = [drawn.choice(["", drawn.gauss(0, 1)]) for _ in range(COLUMNS)]
                out.writerow([f"shop-{shop}", Instant(START + week * 7 * DAY).isoformat(), *cells])
    with (folder / "headrace.toml").open("a") as settings:
        settings.write('\n[sources.Vectors]\npath = "vectors.csv"\n')
    sys.modules.pop("orders", None)
    project = load_project("orders:pipeline", folder=folder)
    assert len(project.plan.columns) > COLUMNS
    run(project, state=None, seed=0, progress=Silent())
    state = tmp_path / "lived"
    plan = ReplayPlan.parse("2024-01-01", "2024-02-20", seed=3, faults=[], freeze=None)
    found = replay(project, plan, state=str(state), progress=Silent())
    assert found.by_model > 0
    compared, different = offline_differs(project, state, 1_000)
    assert (compared, different) == (1_000, 0)
