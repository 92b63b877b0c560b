"""A type checker accepts the project files and rejects typing mistakes in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "examples" / "flights" / "flights.py"
MISTAKES = {
    "a misspelt column": ("hr.mean(Flights.dep_delay)", "hr.mean(Flights.dep_dely)", "dep_dely"),
    "a misspelt function": ("hr.quantile(", "hr.quantiel(", "quantiel"),
    "a mean of texts": ("hr.mean(Flights.dep_delay)", "hr.mean(Flights.carrier)", "arg-type"),
    "a rate of numbers": ("hr.rate(Flights.arr_delay > 15)", "hr.rate(Flights.arr_delay)", "arg-type"),
    "a misspelt argument": ("trials=20", "trails=20", "trails"),
    "a gate that is no gate": ('hr.latency("p99") <= "15ms"', "hr.latency(99) <= '15ms'", "arg-type"),
    "a training function without a model": (
        "return hr.model(model.fit(data.train.X, data.train.y))",
        'return "a model"',
        "return-value",
    ),
}


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    return subprocess.run(
        [*command, "--no-warn-unused-ignores", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_tutorials_project_file_is_accepted_whole() -> None:
    found = check(FLIGHTS)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_mistake_is_rejected_at_its_line(tmp_path: Path) -> None:
    text = FLIGHTS.read_text()
    lines = {}
    for number, (right, wrong, _) in enumerate(MISTAKES.values()):
        assert right in text
        broken = text.replace(right, wrong, 1)
        lines[number] = broken[: broken.index(wrong)].count("\n") + 1
        (tmp_path / f"broken{number}.py").write_text(broken)
    found = check(tmp_path)
    for number, (name, (_, _, reason)) in enumerate(MISTAKES.items()):
        told = [line for line in found.stdout.splitlines() if f"broken{number}.py:{lines[number]}:" in line]
        assert any(reason in line for line in told), f"{name}: {told}\n{found.stdout}"


@pytest.mark.parametrize("name", ["sum", "mean", "min", "max", "count", "rate"])
def test_public_names_exist_where_the_type_checker_sees_them(name: str) -> None:
    import headrace

    assert callable(getattr(headrace, name))
    assert name in dir(headrace)
