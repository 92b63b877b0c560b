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


EXPRESSIONS = """import headrace as hr


class T(hr.Source):
    key: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    x: hr.Column[float | None] = hr.column()
    n: hr.Column[int] = hr.column()
    s: hr.Column[str | None] = hr.column()
    b: hr.Column[bool | None] = hr.column()
    d: hr.Column[hr.Date | None] = hr.column()


hr.mean(hr.if_else(T.x > 1, T.n + 2.5, None), where=T.x.between(1, 2) | ~T.b)
hr.rate(T.s.startswith("a") & T.b & (T.at > hr.Instant(0)) & (T.d < T.d) & (T.s < "a"))
hr.sum(2 * T.n // 3 % T.x - -T.x.clip(0, 1) / 2, where=T.s.isin(["a"]) ^ T.b)
hr.mean((T.at + "1h").seconds_since(T.at) + (T.at - T.at) + T.at.hour("UTC") + ("a" + T.s + "b").length())
hr.max(hr.coalesce(T.s.as_int(), T.n).fill_null(0).abs())
"""
REJECTED = {
    "T.s * 2": "operator",
    "T.s + 2": "operator",
    "T.x + 'a'": "operator",
    "T.n - '1h'": "operator",
    "T.s < 3": "operator",
    "T.x > 'a'": "operator",
    "T.s.abs()": "misc",
    "T.x.lower()": "misc",
    "T.x & T.b": "misc",
    "~T.s": "misc",
    "T.s.hour('UTC')": "misc",
    "T.at.hour(3)": "arg-type",
    "T.s.startswith(1)": "arg-type",
    "T.s.as_intt()": "attr-defined",
    "hr.mean(T.s.lower())": "arg-type",
    "hr.if_else(T.x, 1, 2)": "arg-type",
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


def test_expressions_are_accepted_and_their_mistakes_rejected(tmp_path: Path) -> None:
    path = tmp_path / "rows.py"
    path.write_text(EXPRESSIONS + "\n".join(REJECTED) + "\n")
    found, first = check(path).stdout, EXPRESSIONS.count("\n") + 1
    errors = [line for line in found.splitlines() if ": error:" in line]
    for number, (mistake, reason) in enumerate(REJECTED.items(), first):
        assert any(f"rows.py:{number}:" in line for line in errors), f"{mistake} passed\n{found}"
        assert reason in found
    assert all(f"rows.py:{number}:" not in line for line in errors for number in range(first)), found


@pytest.mark.parametrize("name", ["sum", "mean", "min", "max", "count", "rate"])
def test_public_names_exist_where_the_type_checker_sees_them(name: str) -> None:
    import headrace

    assert callable(getattr(headrace, name))
    assert name in dir(headrace)
