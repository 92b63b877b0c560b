"""Files are read as declared, or refused with what, where and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.core.errors import ConfigurationError, DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, SourceSettings
from headrace.core.time import DAY, Instant
from headrace.sources.definition import Source, SourceDefinition, column, definition_of, event_time, row_id
from headrace.sources.files import FilePart
from headrace.sources.listing import list_files
from headrace.sources.readers import Conformer, Extract
from headrace.sources.run import place


class Rows(Source):
    key: Column[str] = row_id()
    at: Column[Instant] = event_time()
    size: Column[float | None] = column(name="Size (km)")
    count: Column[int | None] = column()
    good: Column[bool | None] = column()
    day: Column[date | None] = column()
    secret: Column[int | None] = column(pii=True)


ROWS = definition_of(Rows)
NOON = datetime.fromisoformat("2013-07-01T12:00:00+00:00")
GOOD: dict[str, pa.Array] = {
    "key": pa.array(["a", "b"]),
    "at": pa.array([NOON, NOON], pa.timestamp("us", "UTC")),
    "Size (km)": pa.array([1.5, None]),
    "count": pa.array([1, None], pa.int64()),
    "good": pa.array([True, None]),
    "day": pa.array([date(2013, 7, 1), None]),
    "secret": pa.array([7, None], pa.int64()),
}
HEADER = "key,at,Size (km),count,good,day,secret\n"
READ = {
    "key": ["a", "b"],
    "at": [Instant.of(NOON), Instant.of(NOON)],
    "size": [1.5, None],
    "count": [1, None],
    "good": [True, None],
    "day": [Instant.parse("2013-07-01"), None],
    "secret": [7, None],
}
SETTINGS = SourceSettings(path="rows.parquet")


def find_files(definition: SourceDefinition, settings: SourceSettings, folder: Path) -> list[Path]:
    return [Path(found.path) for found in list_files(definition, settings, folder)]


def read_file(definition: SourceDefinition, settings: SourceSettings, path: Path, rows: int = 65_536) -> Extract:
    """Return all of one file; every test reads in one piece, those of batches say how many rows."""
    (found,) = list_files(definition, settings.model_copy(update={"path": str(path)}), path.parent)
    limits = LimitSettings(read_rows=rows)
    extracts = list(FilePart(definition, settings, limits, found, 0).extracts())
    assert len(extracts) <= 1
    if extracts:
        return extracts[0]
    nothing = Conformer(definition, settings, list(GOOD), "nothing")
    return nothing.rows([], np.zeros(0, np.int64), {})


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Extract]:
    def write_and_read(settings: SourceSettings = SETTINGS, **changed: Any) -> Extract:
        columns = {name: array for name, array in (GOOD | changed).items() if array is not None}
        pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
        return read_file(ROWS, settings, tmp_path / "rows.parquet")

    return write_and_read


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Extract]:
    def write_and_read(body: str, **settings: Any) -> Extract:
        path = tmp_path / "rows.csv"
        path.write_text(body)
        return read_file(ROWS, SourceSettings(**settings), path)

    return write_and_read


def test_parquet_is_read_under_the_columns_own_names(parquet: Callable[..., Extract]) -> None:
    found = parquet(more=pa.array([1, 2]))
    assert found.table.to_pydict() == READ
    assert found.extra == ("more",)


def test_csv_is_read_like_parquet(csv: Callable[..., Extract]) -> None:
    rows = "a,2013-07-01T12:00:00Z,1.5,1,true,2013-07-01,7\nb,2013-07-01 14:00:00.0000009+02:00,,,,,\n"
    assert csv(HEADER + rows).table.to_pydict() == READ


def test_compressed_csv_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    with pa.output_stream(path) as stream:
        stream.write((HEADER + "a,2013-07-01T12:00:00Z,1.5,1,true,2013-07-01,7\n").encode())
    assert read_file(ROWS, SourceSettings(), path).table["count"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("Size (km)", pa.array([1, None], pa.int32()), [1.0, None]),
        ("Size (km)", pa.array([0.5, None], pa.float32()), [0.5, None]),
        ("count", pa.array([200, None], pa.uint8()), [200, None]),
        ("key", pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        ("key", pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        ("good", pa.nulls(2), [None, None]),
        ("at", pa.array([1_999, -1], pa.timestamp("ns", "UTC")), [1, -1]),
        ("at", pa.array([3, 4], pa.timestamp("s", "Asia/Tokyo")), [3_000_000, 4_000_000]),
        ("day", pa.array([1, None], pa.date32()), [DAY, None]),
    ],
)
def test_types_that_lose_nothing_are_taken(
    parquet: Callable[..., Extract], name: str, array: pa.Array, expected: list[Any]
) -> None:
    own = "size" if name == "Size (km)" else name
    assert parquet(**{name: array}).table[own].to_pylist() == expected


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("Size (km)", pa.array(["1.5", None])),
        ("Size (km)", pa.array([2**53 + 1, None])),
        ("Size (km)", pa.array([-(2**63), None])),
        ("count", pa.array([1.0, None])),
        ("count", pa.array([1, None], pa.uint64())),
        ("good", pa.array([1, None])),
        ("at", pa.array([1, 2])),
        ("at", pa.array(["2013-07-01T12:00:00Z"] * 2)),
        ("day", pa.array([NOON, None], pa.timestamp("us", "UTC"))),
        ("key", pa.array([1, 2])),
    ],
)
def test_a_retyped_column_is_named_with_both_types(parquet: Callable[..., Extract], name: str, array: pa.Array) -> None:
    own = "size" if name == "Size (km)" else name
    with pytest.raises(SchemaChanged) as error:
        parquet(**{name: array})
    assert error.value.what == f"Rows.{own} was retyped"
    assert error.value.got == f"{own} (retyped): {array.type}"
    assert error.value.expected == f"{own}: {ROWS.by_name[own].dtype}"


def test_several_changes_are_one_error(parquet: Callable[..., Extract]) -> None:
    with pytest.raises(SchemaChanged) as error:
        parquet(count=None, good=None)
    assert error.value.what == "Rows: 2 columns changed"
    assert error.value.got == "count (removed): no columns count, good (removed): no columns good"
    assert error.value.expected == "count: int | None, good: bool | None"
    assert error.value.next_step == "restore the column upstream, or change Rows and run: headrace plan"
    assert "rows.parquet, declared at " in str(error.value.where)


def test_a_column_that_is_there_twice_is_refused(csv: Callable[..., Extract]) -> None:
    with pytest.raises(SchemaChanged, match="count twice"):
        csv(HEADER.strip() + ",count\n" + "a,2013-07-01T12:00:00Z,1.5,1,true,2013-07-01,7,8\n")


def test_naive_timestamps_need_a_zone(parquet: Callable[..., Extract], csv: Callable[..., Extract]) -> None:
    naive = pa.array([datetime(2013, 11, 3, 1, 30), datetime(2013, 7, 1, 8)], pa.timestamp("us"))
    with pytest.raises(DataError) as error:
        parquet(at=naive)
    assert error.value.what == "Rows: timestamps without a zone"
    assert error.value.got == "2013-11-03 01:30:00"
    assert error.value.next_step == 'name their zone: [sources.Rows] zone = "Europe/Paris"'
    found = parquet(SourceSettings(zone="America/New_York"), at=naive)
    assert [Instant(at).isoformat() for at in found.table["at"].to_pylist()] == [
        "2013-11-03T05:30:00Z",
        "2013-07-01T12:00:00Z",
    ]
    assert found.ambiguous == 1
    mixed = HEADER + "a,2013-07-01T08:00:00,,,,,\nb,2013-07-01T12:00:00Z,,,,,\n"
    assert csv(mixed, zone="America/New_York").table["at"].to_pylist() == READ["at"]
    with pytest.raises(DataError, match="timestamps without a zone"):
        csv(mixed)


def test_settings_name_columns_and_the_arrival(csv: Callable[..., Extract]) -> None:
    body = "id,at,Size (km),count,good,day,secret,loaded\na,2013-07-01T12:00:00Z,,,,,,2013-07-02T00:00:00Z\n"
    found = csv(body, columns={"key": "id"}, arrival="loaded")
    assert found.table["key"].to_pylist() == ["a"]
    assert found.table["_arrival"].to_pylist() == [Instant.parse("2013-07-02")]
    with pytest.raises(SchemaChanged, match="_arrival was removed"):
        csv(body, columns={"key": "id"}, arrival="stamped")


def test_cells_that_are_no_values_are_kept_apart(csv: Callable[..., Extract]) -> None:
    rows = "a,2013-07-01T12:00:00Z,x,1,true,2013-07-01,7\nb,2013-07-01T12:00:00Z,2,1.5,maybe,2013-02-30,\n"
    more = "c,2013-07-01T12:00:00Z,3,3,1,2013-07-01,8\n"
    found = csv(HEADER + rows + more)
    assert found.misread == {0: {"size": "x"}, 1: {"count": "1.5", "good": "maybe", "day": "2013-02-30"}}
    assert found.table["size"].to_pylist() == [None, 2.0, 3.0]


def test_a_column_without_one_value_is_retyped(csv: Callable[..., Extract]) -> None:
    with pytest.raises(SchemaChanged) as error:
        csv(HEADER + "a,2013-07-01T12:00:00Z,far,,,,hidden\nb,2013-07-01T12:00:00Z,,,,,\n")
    assert error.value.got == "size (retyped): values such as 'far', secret (retyped): values of another type"


def test_null_texts_and_empty_texts_differ(tmp_path: Path) -> None:
    class Notes(Source):
        key: Column[str] = row_id()
        at: Column[Instant] = event_time()
        note: Column[str | None] = column()

    path = tmp_path / "notes.csv"
    path.write_text('key,at,note\na,2013-07-01T12:00:00Z,\nb,2013-07-01T12:00:00Z,""\nc,2013-07-01T12:00:00Z,NA\n')
    notes = definition_of(Notes)
    assert read_file(notes, SourceSettings(), path).table["note"].to_pylist() == [None, "", "NA"]
    assert read_file(notes, SourceSettings(nulls=("NA",)), path).table["note"].to_pylist() == ["", "", None]


@pytest.mark.parametrize(
    ("name", "content", "what", "got"),
    [
        ("rows.parquet", b"", "an empty file", "0 bytes"),
        ("rows.csv", b"", "an empty file", "0 bytes"),
        ("rows.parquet", b"PAR1 and no more", "not a readable parquet file", "Parquet"),
        (
            "rows.csv",
            (HEADER + 'a,"b\n' + "c,d\n" * 9).encode(),
            "not a readable csv file",
            "Expected 7 columns, got 2",
        ),
        ("rows.csv", HEADER.encode() + b"\xff,2013-07-01T12:00:00Z,1,1,true,,\n", "not a readable csv file", "UTF8"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, what: str, got: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_file(ROWS, SourceSettings(), tmp_path / name)
    assert error.value.what == f"Rows: {what}"
    assert got in str(error.value.got)
    assert error.value.where == str(tmp_path / name)
    assert error.value.next_step == "write the file again (beside, then rename), or take it out of the path"


def test_a_truncated_parquet_file_is_named(tmp_path: Path, parquet: Callable[..., Extract]) -> None:
    parquet()
    path = tmp_path / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_file(ROWS, SETTINGS, path)


def test_a_format_is_known_or_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(HEADER)
    with pytest.raises(DataError, match="a file of unknown format"):
        read_file(ROWS, SourceSettings(), path)
    assert read_file(ROWS, SourceSettings(format="csv"), path).table.num_rows == 0


def test_files_are_found_by_path_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.csv", "b/c.parquet", "b/d.csv.gz", "b/e.txt"):
        (tmp_path / name).touch()
    found = {
        p: [f.name for f in find_files(ROWS, SourceSettings(path=p), tmp_path)] for p in ("a.csv", "b", "**/*.csv*")
    }
    assert found == {"a.csv": ["a.csv"], "b": ["c.parquet", "d.csv.gz"], "**/*.csv*": ["a.csv", "d.csv.gz"]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        find_files(ROWS, SourceSettings(path="nowhere/*.csv"), tmp_path)
    assert error.value.where == "[sources.Rows] path"
    assert error.value.got == "nowhere/*.csv"
    with pytest.raises(ConfigurationError, match="nothing says where the rows of Rows lie"):
        find_files(ROWS, SourceSettings(), tmp_path)


def test_texts_that_are_not_utf8_are_refused() -> None:
    raw = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        Conformer(ROWS, SETTINGS, list(GOOD), "table").table(pa.table(GOOD | {"key": raw}), np.array([1]))


LINES = [
    {"key": "a", "at": "2013-07-01T12:00:00Z", "Size (km)": 1.5, "count": 1, "good": True, "day": "2013-07-01", "secret": 7},
    {"key": "b", "at": 1372680000000000, "more": "x"},
]  # fmt: skip


def write_lines(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    with pa.output_stream(path, compression="detect") as stream:
        stream.write("\n".join([*texts, ""]).encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz", "rows.jsonl.zst", "rows.JSONL"])
def test_json_lines_are_read_as_events_are(tmp_path: Path, name: str) -> None:
    found = read_file(ROWS, SourceSettings(path=name), write_lines(tmp_path / name, LINES[0], "", LINES[1]))
    assert found.table.to_pydict() == READ
    assert found.extra == ("more",)
    assert not found.misread


def test_a_line_or_cell_that_is_none_is_told_with_its_row(tmp_path: Path) -> None:
    wrong = LINES[0] | {"key": "c", "count": "1", "secret": "s3cret"}
    found = read_file(ROWS, SETTINGS, write_lines(tmp_path / "rows.jsonl", LINES[0], "{oops", wrong, "[1]"))
    assert found.table.num_rows == 4
    assert found.misread == {1: {"(line)": "{oops"}, 2: {"count": "1", "secret": "s3cret"}, 3: {"(line)": "[1]"}}
    accepted, refused = place(ROWS, found, "rows.jsonl")
    assert accepted["key"].to_pylist() == ["a"]
    reasons = refused["reason"].to_pylist()
    assert reasons[0] == "not a JSON object"  # its text could hold a column marked pii
    assert "count: expected int, got '1'" in reasons[1]
    assert "s3cret" not in reasons[1]


def test_json_lines_of_other_columns_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {**LINES[0], "count": "many"})
    with pytest.raises(SchemaChanged, match=r"Rows\.count was retyped") as caught:
        read_file(ROWS, SETTINGS, path)
    assert "values such as 'many'" in str(caught.value)
    path = write_lines(tmp_path / "rows.jsonl", {k: v for k, v in LINES[0].items() if k != "at"})
    with pytest.raises(SchemaChanged, match=r"Rows\.at was removed"):
        read_file(ROWS, SETTINGS, path)


def test_json_lines_in_a_folder_are_found_with_the_others_and_an_empty_file_is_empty(tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl.gz", LINES[0])
    (tmp_path / "two.csv").write_text(HEADER)
    (tmp_path / "notes.txt").write_text("no data")
    found = find_files(ROWS, SourceSettings(path="."), tmp_path)
    assert [p.name for p in found] == ["one.jsonl.gz", "two.csv"]
    (tmp_path / "empty.jsonl").write_text("")
    empty = read_file(ROWS, SETTINGS, tmp_path / "empty.jsonl").table
    assert empty.num_rows == 0
    assert set(empty.column_names) == set(READ)


def test_a_cut_off_compressed_file_is_unreadable(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl.gz", *[{**LINES[0], "key": str(i)} for i in range(500)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable jsonl file"):
        read_file(ROWS, SETTINGS, path)
