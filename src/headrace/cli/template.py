"""Write a new project: a file that runs, its settings, and data generated from a seed."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from headrace.core.errors import UsageError
from headrace.core.time import DAY, HOUR, MINUTE, Instant
from headrace.pipelines.view import Table, View

SEED = 7
DAYS = 120
ORDERS_A_DAY = 60
START = Instant.parse("2024-01-01")
PROJECT = '''"""Predict, when an order is placed, whether it will be delivered late."""

from lightgbm import LGBMClassifier

import headrace as hr


class Orders(hr.Source):
    order_id: hr.Column[str] = hr.row_id()
    placed: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity(matches=r"shop-[0-9]+")
    items: hr.Column[int] = hr.column(ge=1, le=100)
    delivered: hr.Column[hr.Instant | None] = hr.column()  # named in known_at: known at its own value
    hours: hr.Column[float | None] = hr.column(ge=0, unit="h", known_at=delivered)

    checks = hr.Checks(hr.row_count().within(0.8, of="7d"), bad_rows="quarantine")


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    hours = hr.mean(Orders.hours).over("1d", "7d")
    late = hr.rate(Orders.hours > 24).over("7d")
    orders = hr.count(Orders.items).over("1d")


@hr.on_demand(placed=Orders.placed)
def weekday(placed: hr.Instant) -> int:
    return placed.in_zone("UTC").weekday()


dataset = hr.Dataset(
    rows=Orders,
    at=Orders.placed,
    features=[Orders.items, Shop, weekday],
    label=Orders.hours > 24,
    mature="4d",
)


@hr.train(dataset, split=hr.by_time(valid="14d", test="14d"), search=hr.Search(trials=5, metric="log_loss"))
def late_delivery(data: hr.TrainingData, p: hr.Params) -> hr.Model:
    model = LGBMClassifier(
        num_leaves=p.int("num_leaves", 7, 31), random_state=p.seed, n_jobs=p.threads, deterministic=True, verbose=-1
    )
    return hr.model(model.fit(data.train.X, data.train.y))


pipeline = hr.Pipeline(
    model=late_delivery,
    decision=hr.threshold(0.5),
    gates=[hr.metric("auc") >= 0.6, hr.metric("log_loss").beats_champion(confidence=0.95), hr.model_size() <= "20MB"],
    endpoint=hr.Endpoint(fallback=0.3),
    rollout=hr.Rollout(unit=Orders.order_id, steps=[hr.shadow("1d"), hr.canary(0.2, "1d", min_rows=5)]),
    retrain_on=[hr.every("30d")],
)
'''
SETTINGS = """[project]
modules = ["orders"]

[sources.Orders]
path = "data/orders.csv"
"""


def write_project(folder: str) -> View:
    """Write the project into a new or empty folder.

    Raises:
        UsageError: the folder holds something.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("the folder is not empty", got=folder, next_step=f"headrace new {folder}-2")
    (target / "data").mkdir(parents=True)
    (target / "orders.py").write_text(PROJECT)
    (target / "headrace.toml").write_text(SETTINGS)
    (target / ".gitignore").write_text(".headrace/\n")
    rows = _write_orders(target / "data" / "orders.csv")
    files = ["orders.py", "headrace.toml", "data/orders.csv"]
    steps = (f"cd {folder}", "headrace plan orders:pipeline", "headrace run orders:pipeline")
    table = Table("Written", ["file", "what it is"], [*zip(files, _MEANING, strict=True)])
    return View(f"A project in {folder}", {"folder": folder, "files": files, "rows": rows}, [table], ("Next:", *steps))


_MEANING = (
    "the whole system in one file",
    "where the data lie",
    f"generated orders of {DAYS} days (seed {SEED})",
)


def _write_orders(path: Path) -> int:
    """Write orders whose delivery depends on the shop, its recent load and the size of the order."""
    rng, count = random.Random(SEED), 0
    pace = {f"shop-{i}": rng.uniform(8, 20) for i in range(20)}
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["order_id", "placed", "shop", "items", "delivered", "hours"])
        for day in range(DAYS):
            pace = {shop: max(6.0, hours + rng.gauss(0, 1.5)) for shop, hours in pace.items()}
            for _ in range(ORDERS_A_DAY):
                count += 1
                placed = Instant(START + day * DAY + rng.randrange(24 * 60) * MINUTE)
                shop, items = rng.choice(list(pace)), rng.randint(1, 12)
                hours = round(pace[shop] * rng.lognormvariate(0, 0.35) + 0.8 * items, 2)
                delivered = Instant(placed + int(hours * HOUR))
                lost = rng.random() < 0.01
                known = ["", ""] if lost else [delivered.isoformat(), hours]
                out.writerow([f"o{count:06d}", placed.isoformat(), shop, items, *known])
    return count
