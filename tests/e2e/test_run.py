"""A batch run: whole, resumed after a kill at any effect, and idle when nothing is new; bad input loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from headrace.cli.main import main
from headrace.cli.template import write_project

HEADRACE = [sys.executable, "-m", "headrace.cli"]
TARGET = "orders:pipeline"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    write_project(str(folder))
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project that was run once; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("once") / "project"
    write_project(str(folder))
    assert answer(folder, "run", TARGET)["outcome"] == "promoted"
    return folder


@pytest.fixture
def ran(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "ran"))


def killed_at(folder: Path, point: str, *arguments: str) -> int:
    """Run a command in a process of its own that a failpoint kills; return its exit code."""
    environment = os.environ | {"HEADRACE_FAILPOINTS": point}
    done = subprocess.run([*HEADRACE, *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    return done.returncode


def headrace(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `headrace` does, in this process: importing the libraries anew for each would take minutes."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    for name in ("orders", "other"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "orders.py").exists()]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(list(arguments))
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def answer(folder: Path, *arguments: str) -> dict[str, Any]:
    done = headrace(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows_in(folder: Path) -> int:
    from headrace.storage.tables import open_tables

    return int(open_tables(f"delta:{folder / '.headrace' / 'tables'}").read("reveals_orders").num_rows)


def test_a_run_promotes_and_the_same_command_again_does_nothing(ran: Path) -> None:
    project, rows = ran, rows_in(ran)
    again = answer(project, "run", TARGET)
    assert again["version"] == "orders/v1"
    assert again["outcome"] == "promoted"
    assert rows_in(project) == rows == 14_326
    assert len(answer(project, "models", TARGET)["versions"]) == 1
    assert len(answer(project, "runs", TARGET)["runs"]) == 1
    assert answer(project, "audit", "verify", TARGET)["ok"]


def test_another_training_function_trains_again_on_the_same_data(ran: Path) -> None:
    rewrite(ran, 'hr.metric("log_loss").beats_champion(confidence=0.95), ', "")
    rewrite(ran, 'p.int("num_leaves", 7, 31)', 'p.int("num_leaves", 3, 5)')
    rewrite(ran, "trials=5", "trials=1")
    found = answer(ran, "run", TARGET)
    assert (found["version"], found["outcome"]) == ("orders/v2", "challenger")
    assert answer(ran, "run", TARGET)["run"] == found["run"]
    assert len(answer(ran, "runs", TARGET)["runs"]) == 2


def test_other_gates_judge_again_on_the_same_data(ran: Path) -> None:
    rewrite(ran, 'hr.metric("log_loss").beats_champion(confidence=0.95)', 'hr.metric("auc") >= 0.999')
    assert headrace(ran, "run", TARGET).returncode != 0
    rewrite(ran, 'hr.metric("auc") >= 0.999', 'hr.metric("auc") >= 0.501')
    found = answer(ran, "run", TARGET)
    assert (found["version"], found["outcome"]) == ("orders/v1", "champion")
    rewrite(ran, 'p.int("num_leaves", 7, 31)', 'p.int("num_leaves", 3, 5)')
    rewrite(ran, 'hr.metric("auc") >= 0.501', 'hr.metric("auc") >= 0.999')
    assert headrace(ran, "run", TARGET).returncode != 0
    rewrite(ran, 'hr.metric("auc") >= 0.999', 'hr.metric("auc") >= 0.501')
    found = answer(ran, "run", TARGET)
    assert (found["version"], found["outcome"]) == ("orders/v2", "challenger")


@pytest.mark.parametrize(
    "point",
    [
        "tables.before_commit:kill",
        "tables.after_commit:kill",
        "keyvalue.after_commit:kill:2",
        "ledger.before_commit:kill",
    ],
)
def test_a_run_killed_at_an_effect_is_resumed_by_the_same_command(project: Path, point: str) -> None:
    assert killed_at(project, point, "run", TARGET) == -9
    done = answer(project, "run", TARGET)
    assert done["outcome"] == "promoted"
    assert rows_in(project) == 14_326
    assert [v["version"] for v in answer(project, "models", TARGET)["versions"]] == ["orders/v1"]
    assert answer(project, "audit", "verify", TARGET)["ok"]


def change(project: Path, make: Any) -> None:
    path = project / "data" / "orders.csv"
    make(path)


def drop_column(path: Path) -> None:
    table = pa.csv.read_csv(path)
    pa.csv.write_csv(table.drop_columns(["items"]), path)


def retype_column(path: Path) -> None:
    table = pa.csv.read_csv(path)
    words = pa.array([f"{v} pieces" for v in table["items"].to_pylist()])
    pa.csv.write_csv(table.set_column(table.column_names.index("items"), "items", words), path)


def naive(path: Path) -> None:
    path.write_text(path.read_text().replace("Z,", ","))


def to_parquet_garbage(path: Path) -> None:
    path.unlink()
    path.with_suffix(".parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    settings = path.parents[1] / "headrace.toml"
    settings.write_text(settings.read_text().replace("orders.csv", "orders.parquet"))


BAD: dict[str, tuple[Any, str, str]] = {
    "missing file": (lambda path: path.unlink(), "no such file", "data/orders.csv"),
    "missing column": (drop_column, "Orders.items was removed", "items"),
    "retyped column": (retype_column, "Orders.items was retyped", "items"),
    "naive timestamps": (naive, "timestamps", "zone"),
    "unreadable Parquet": (to_parquet_garbage, "not a readable parquet file", "orders.parquet"),
    "empty file": (lambda path: path.write_bytes(b""), "Orders", "orders.csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_a_clear_error_and_changes_nothing(ran: Path, name: str) -> None:
    make, what, detail = BAD[name]
    project = ran
    before = rows_in(project), answer(project, "models", TARGET)["versions"]
    change(project, make)
    done = headrace(project, "run", TARGET)
    assert done.returncode == 1
    assert what in done.stderr
    assert detail in done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr
    assert (rows_in(project), answer(project, "models", TARGET)["versions"]) == before


def test_an_extra_column_passes(project: Path) -> None:
    path = project / "data" / "orders.csv"
    table = pa.csv.read_csv(path)
    pa.csv.write_csv(table.append_column("remark", pa.array(["x"] * table.num_rows)), path)
    assert answer(project, "run", TARGET)["outcome"] == "promoted"


def rewrite(project: Path, old: str, new: str) -> None:
    path = project / "orders.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MISTAKES: dict[str, tuple[str, str, str]] = {
    "syntax error": ("class Orders(hr.Source):", "class Orders(hr.Source:", "does not parse"),
    "unknown column": ("hr.mean(Orders.hours)", "hr.mean(Orders.huors)", "did you mean hours?"),
    "leakage": ("features=[Orders.items, ", "features=[Orders.items, Orders.hours, ", "would leak"),
    "bad duration": ('.over("1d", "7d")', '.over("1 fortnight")', "not a duration"),
    "circular import": ("import headrace as hr", "import headrace as hr\nimport other", "circle"),
    "a gate in an if": ("pipeline = ", "if hr.metric('auc') >= 0.6: pass\npipeline = ", "no truth value"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_project_file_names_its_line(project: Path, name: str) -> None:
    old, new, text = MISTAKES[name]
    rewrite(project, old, new)
    (project / "other.py").write_text("from orders import pipeline\n")
    done = headrace(project, "plan", TARGET)
    assert done.returncode == 1
    assert text in done.stderr
    assert ".py:" in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_use_exits_with_2_and_a_refusal_with_3(project: Path, ran: Path) -> None:
    assert headrace(project, "frobnicate").returncode == 2
    assert headrace(project, "replay", TARGET, "--from", "2024-02-01", "--to", "2024-01-01").returncode == 2
    refused = headrace(ran, "rollback", TARGET)
    assert refused.returncode == 3
    assert "no earlier champion" in refused.stderr


def test_a_missing_project_says_which_there_are(project: Path) -> None:
    done = headrace(project, "plan", "order:pipeline")
    assert done.returncode == 1
    assert "did you mean orders?" in done.stderr


def test_a_state_folder_of_another_kind_is_left_alone(project: Path) -> None:
    foreign = project / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"cat")
    done = headrace(project, "run", TARGET, "--state", "photos")
    assert done.returncode == 1
    assert "not a Headrace state folder" in done.stderr
    assert sorted(p.name for p in foreign.iterdir()) == ["cat.jpg"]


def test_a_quantity_gate_that_fails_registers_and_does_not_promote(project: Path) -> None:
    rewrite(project, 'hr.metric("auc") >= 0.6', 'hr.metric("auc") >= 0.999')
    done = headrace(project, "run", TARGET)
    assert done.returncode == 3
    assert 'metric("auc") >= 0.999' in done.stderr
    assert answer(project, "models", TARGET)["versions"][0]["champion"] is False


def test_predictions_explain_themselves(ran: Path) -> None:
    project = ran
    rows = project / "rows.jsonl"
    good = {"order_id": "x1", "placed": "2024-05-01T10:00:00Z", "shop": "shop-3", "items": 4}
    rows.write_text("\n".join(json.dumps(r) for r in (good, {**good, "items": "four"}, {**good, "shop": "S"})))
    found = answer(project, "predict", TARGET, "rows.jsonl")
    assert found["errors"] == 2
    assert "items is of another type" in found["predictions"][1]["error"]
    told = answer(project, "explain", TARGET, found["predictions"][0]["prediction_id"])
    assert told["lineage"]["facts"]["version"] == "orders/v1"
    assert told["request"]["shop"] == "shop-3"
    events = answer(
        project, "explain", TARGET, "--feature", "Shop.hours", "--key", "shop-3", "--at", "2024-03-01T00:00:00Z"
    )
    part = events["features"][0]
    assert part["used"] + part["refused"] > 100
    assert {e["why"] for e in part["events"] if e["used"]} == {"inside the window"}
    parquet = project / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([good]), parquet)
    assert answer(project, "predict", TARGET, "rows.parquet")["rows"] == 1


def test_backup_is_a_copy_of_the_folder(ran: Path, tmp_path: Path) -> None:
    project = ran
    before = answer(project, "models", TARGET)["versions"]
    shutil.copytree(project / ".headrace", tmp_path / "backup")
    shutil.rmtree(project / ".headrace")
    shutil.copytree(tmp_path / "backup", project / ".headrace")
    assert answer(project, "models", TARGET)["versions"] == before
    assert answer(project, "audit", "verify", TARGET)["ok"]


def test_the_next_command_is_one_that_works_where_the_last_one_was_typed(project: Path) -> None:
    away, typed = project.parent, f"{project.name}/orders.py:pipeline"
    first = answer(away, "run", typed, "--state", "elsewhere")
    assert first["next"] == f"headrace serve {typed} --state elsewhere"
    told = headrace(away, "models", typed, "--state", "elsewhere").stdout
    assert f"headrace promote {typed} --state elsewhere VERSION --why" in " ".join(told.split())
    assert answer(away, "models", typed, "--state", "elsewhere")["versions"][0]["version"] == "orders/v1"
    assert answer(project, "run", TARGET)["next"] == "headrace serve orders:pipeline"


def test_where_settings_name_one_module_commands_need_not(project: Path) -> None:
    assert answer(project, "run")["next"] == "headrace serve orders:pipeline"
    assert answer(project, "models")["versions"][0]["version"] == "orders/v1"
    assert answer(project, "audit", "verify")["ok"]
    (project / "headrace.toml").write_text('[project]\nmodules = ["orders", "other"]\n')
    done = headrace(project, "plan")
    assert done.returncode == 1
    assert "which pipeline?" in done.stderr
    assert "next:     headrace run orders:pipeline" in done.stderr
    assert "no [project] modules" in headrace(project.parent, "plan").stderr
