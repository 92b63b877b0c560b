"""The page on stores tells the capabilities and settings that the stores have."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

import headrace as hr
from headrace.core.time import SECOND, duration
from headrace.serving.definition import OnMissing
from headrace.storage.backends import EMBEDDED, SERVERS
from headrace.storage.keyvalue import Capabilities, dynamodb, lmdb, memory, redis
from headrace.storage.keyvalue.location import Option

PAGE = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
BACKENDS = (memory, lmdb, redis, dynamodb)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_the_table_of_capabilities_is_what_the_backends_say() -> None:
    lines = {
        cells(line)[0].split("`")[1]: cells(line)[1:] for line in PAGE.splitlines() if re.match(r"\| `\w+`: ", line)
    }
    assert list(lines) == [field.name for field in fields(Capabilities)]
    for name, shown in lines.items():
        assert shown == ["yes" if getattr(backend.CAPABILITIES, name) else "no" for backend in BACKENDS], name


def test_every_scheme_is_on_the_page() -> None:
    for scheme in (*EMBEDDED["keyvalue"], *SERVERS["keyvalue"]):
        assert f"`{scheme}:`" in PAGE


@pytest.mark.parametrize(("title", "options"), [("Redis", redis.OPTIONS), ("DynamoDB", dynamodb.OPTIONS)])
def test_every_setting_of_a_url_is_on_the_page(title: str, options: dict[str, Option]) -> None:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    shown = {
        cells(line)[0].strip("`"): cells(line)[1].strip("`") for line in section.splitlines() if line.startswith("| `")
    }
    assert list(shown) == list(options)
    for name, text in shown.items():
        default = options[name].default
        told = duration(text) / SECOND if options[name].kind == "duration" else text
        assert told == default or str(default) == text.replace("—", ""), name


def test_every_choice_while_the_store_is_away_is_on_the_page() -> None:
    for choice in get_args(OnMissing):
        assert f'| `"{choice}"` |' in PAGE
        hr.Endpoint(fallback=0.2, on_missing=choice)
