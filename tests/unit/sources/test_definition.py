"""What a source class may not say is told with its line."""

from __future__ import annotations

from typing import Any

import pytest

import headrace as hr
from headrace.core.errors import DefinitionError
from headrace.sources.definition import RESERVED
from headrace.sources.record import ARRIVAL, CONTENT, ROW_ID
from headrace.sources.stated import STATED, stated_names


def test_the_names_that_reveals_need_are_reserved_and_may_be_names_in_the_data() -> None:
    assert set(RESERVED) == {ROW_ID, ARRIVAL, STATED, CONTENT}
    for name in (*RESERVED, *stated_names(200)):
        body: dict[str, Any] = {"__annotations__": {name: hr.Column[int]}, name: hr.column()}
        with pytest.raises(DefinitionError, match="the name is Headrace's own") as caught:
            type("Trips", (hr.Source,), body)
        assert caught.value.next_step == f'{name.strip("_")} = hr.column(name="{name}")'


def test_a_column_needs_a_type_and_a_type_a_column() -> None:
    with pytest.raises(DefinitionError, match="has no type"):
        type("Trips", (hr.Source,), {"distance": hr.column()})
    with pytest.raises(DefinitionError, match="has a type and no value"):
        type("Trips", (hr.Source,), {"__annotations__": {"distance": hr.Column[float]}})
