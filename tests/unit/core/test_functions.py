"""A function's source tells everything of the project that its results follow from, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from headrace.core.functions import function_source
from headrace.features.plan import plan_features

MAIN = '''
import functools
import math
from dataclasses import dataclass

import headrace as hr
import numpy as np
import side
from side import scaled, unused as unused_here

LIMIT = 10.0
WORDS = {"a", "b", "c"}
TABLE = {"x": (1, [2.5])}
other = 5


def capped(x):
    return min(x, LIMIT)


@functools.lru_cache
def remembered(x):
    return len(WORDS) + x


@dataclass
class Base:
    x: float

    @property
    def half(self):
        return halved(self.x)


class Held(Base):
    def value(self):
        return self.half


def halved(x):
    return x / 2


class Orders(hr.Source):
    order: hr.Column[str] = hr.row_id()
    at: hr.Column[hr.Instant] = hr.event_time()
    shop: hr.Column[str] = hr.entity()
    amount: hr.Column[float] = hr.column()


@hr.on_demand(x=Orders.amount)
def inner(x: float) -> float:
    return x + 1


def adder(step):
    def add(x):
        return x + step

    return add


plus = adder(3)


@hr.on_demand(x=Orders.amount)
def function(x: float) -> float:
    """Use everything."""
    found = [capped(y) for y in (x, np.sqrt(x), math.pi)]
    unrelated = sum(found)
    return (unrelated + scaled(x) + side.deep.shifted(x) + side.RATE + remembered(1) + Held(x).value() + inner(x)
            + TABLE["x"][0] + (lambda y: nested(y))(x) + plus(x) + len(str(Orders.amount)))


def nested(x):
    return function_of_itself(x)


def function_of_itself(x):
    return 0 if x > 1 else nested(x)


def unrelated(x):
    return x


@hr.aggregate
def fold(values: list[float]) -> float:
    return halved(sum(values))


class Shop(hr.FeatureGroup, of=Orders, entity=Orders.shop):
    folded = fold(Orders.amount).over("1d")
'''
SIDE = """
import deep

RATE = 0.5


def scaled(x):
    return x * factor()


def factor():
    return 2.0


def unused():
    return 1
"""
DEEP = """
def shifted(x):
    return x - 7
"""
FILES = {"main": MAIN, "side": SIDE, "deep": DEEP}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Return what imports the project with some text replaced."""
    count = 0

    def loaded(name: str = "main", old: str = "", new: str = "") -> ModuleType:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        for file, text in FILES.items():
            assert file != name or old in text
            (folder / f"{file}.py").write_text(text.replace(old, new, 1) if file == name and old else text)
        for file in reversed(FILES):
            spec = importlib.util.spec_from_file_location(file, folder / f"{file}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, file, module)
            spec.loader.exec_module(module)
        return sys.modules["main"]

    return loaded


CHANGED = {
    "itself": ("main", "unrelated = sum(found)", "unrelated = sum(found) + 0.0"),
    "a helper": ("main", "return min(x, LIMIT)", "return max(x, LIMIT)"),
    "a helper of a helper in another file": ("side", "return 2.0", "return 3.0"),
    "a helper of a module of a module": ("deep", "return x - 7", "return x - 8"),
    "a constant": ("main", "LIMIT = 10.0", "LIMIT = 11.0"),
    "a constant of a module": ("side", "RATE = 0.5", "RATE = 0.6"),
    "a set": ("main", '"b", "c"', '"b", "d"'),
    "a table": ("main", "[2.5]", "[2.6]"),
    "a remembered helper": ("main", "len(WORDS) + x", "len(WORDS) - x"),
    "a method": ("main", "return self.half\n", "return self.half * 2\n"),
    "a property of a base class": ("main", "return halved(self.x)", "return 2 * halved(self.x)"),
    "a helper of a method": ("main", "return x / 2", "return x / 3"),
    "another on-demand function": ("main", "return x + 1", "return x + 2"),
    "what a lambda calls": ("main", "return 0 if x > 1", "return 9 if x > 1"),
    "what a closure holds": ("main", "plus = adder(3)", "plus = adder(4)"),
}
SAME = {
    "another constant": ("main", "other = 5", "other = 6"),
    "a namesake of a local variable": (
        "main",
        "def unrelated(x):\n    return x",
        "def unrelated(x):\n    return 2 * x",
    ),
    "what is imported and not used": ("side", "return 1\n", "return 2\n"),
    "a comment elsewhere": ("deep", "def shifted", "# said better\ndef shifted"),
    "a source": (
        "main",
        "shop: hr.Column[str] = hr.entity()",
        'shop: hr.Column[str] = hr.entity(description="a shop")',
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_change_of_what_it_uses_changes_it(name: str, load: Callable[..., ModuleType]) -> None:
    before, after = (function_source(load(*change).function.function) for change in ((), CHANGED[name]))
    assert before != after


@pytest.mark.parametrize("name", SAME)
def test_a_change_of_anything_else_does_not(name: str, load: Callable[..., ModuleType]) -> None:
    before, after = (function_source(load(*change).function.function) for change in ((), SAME[name]))
    assert before == after


def test_nothing_of_python_or_installed_packages_is_told(load: Callable[..., ModuleType]) -> None:
    told = function_source(load().function.function)
    assert told.startswith("@hr.on_demand(x=Orders.amount)\ndef function(")
    assert "class Orders" not in told
    assert len(told) < len(MAIN + SIDE + DEEP)


def test_a_function_without_a_file_is_told_by_its_code() -> None:
    def told(text: str) -> str:
        code = compile(text, "<cell>", "eval").co_consts[0]
        return function_source(FunctionType(code, {}))

    text = "lambda x: x in {'a', 'b', 'c'} or (lambda y: y + 1)(x)"
    assert told(text) == told(text)
    assert len({told(text), told(text.replace("+ 1", "+ 2")), told(text.replace("'c'", "'d'"))}) == 3


def test_features_follow_their_helpers(load: Callable[..., ModuleType]) -> None:
    def versions(*change: str) -> tuple[str, str]:
        main: Any = load(*change)
        plan = plan_features([main.Shop, main.function], "")
        return plan.groups[0].hash, plan.features

    group, features = versions()
    assert versions() == (group, features)
    fold = versions(*CHANGED["a helper of a method"])
    assert fold[0] != group
    deep = versions(*CHANGED["a helper of a module of a module"])
    assert deep[0] == group
    assert deep[1] != features
