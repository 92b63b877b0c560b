"""Bad input is a typed error with its place, or a refused row; never a wrong number, never a lost good row."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.core.errors import DataError, SchemaChanged
from headrace.core.expressions import Column
from headrace.core.settings import LimitSettings, Settings, SourceSettings
from headrace.core.time import Instant
from headrace.sources.batch import load
from headrace.sources.definition import Source, column, definition_of, event_time, row_id
from headrace.sources.run import Load


class Rows(Source):
    key: Column[str] = row_id()
    at: Column[Instant] = event_time()
    size: Column[float | None] = column()
    count: Column[int | None] = column()


ROWS = definition_of(Rows)
HEADER = "key,at,size,count\n"
AT = "2013-07-01T12:00:00Z"
KINDS = ["csv", "jsonl", "parquet"]


def reading(folder: Path, name: str, limits: LimitSettings | None = None, **settings: Any) -> Load:
    where = Settings(sources={"Rows": SourceSettings(path=name, **settings)}, limits=limits or LimitSettings())
    return load(ROWS, where, folder)


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """Write rows of plain values; instants are texts in CSV and JSON, and typed in Parquet."""
    name = f"rows.{kind}"
    if kind == "csv":
        cells = [[row.get(c) for c in ("key", "at", "size", "count")] for row in rows]
        lines = [",".join("" if cell is None else str(cell) for cell in row) for row in cells]
        (folder / name).write_text(HEADER + "\n".join(lines) + "\n")
    elif kind == "jsonl":
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        at = [None if row["at"] is None else Instant.parse(row["at"]) for row in rows]
        table = {
            "key": pa.array([row.get("key") for row in rows], pa.string()),
            "at": pa.array(at, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "size": pa.array([row.get("size") for row in rows], pa.float64()),
            "count": pa.array([row.get("count") for row in rows], pa.int64()),
        }
        pq.write_table(pa.table(table), folder / name)
    return name


def row(key: Any, at: Any = AT, size: Any = None, count: Any = None) -> dict[str, Any]:
    return {"key": key, "at": at, "size": size, "count": count}


def keys(found: Load) -> list[str]:
    return sorted(key[5:].decode() for key in found.batch.table["_row_id"].to_pylist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_in_a_key_or_moment_refuses_its_row_alone(tmp_path: Path, kind: str) -> None:
    found = reading(tmp_path, write(tmp_path, kind, [row("a"), row(None), row("c", at=None), row("d")]))
    assert keys(found) == ["a", "d"]
    assert found.refused["reason"].to_pylist() == [
        "key: null, but it names the row",
        "at: null, but it places the row",
    ]
    assert [position.rsplit("row ", 1)[1] for position in found.refused["position"].to_pylist()] == ["2", "3"]


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_10_kb_are_kept_apart(tmp_path: Path, kind: str) -> None:
    long = "k" * 10_000
    found = reading(tmp_path, write(tmp_path, kind, [row(long + "a"), row(long + "b")]))
    assert len(set(found.batch.table["_row_id"].to_pylist())) == 2
    assert found.batch.table["key"].to_pylist() in ([long + "a", long + "b"], [long + "b", long + "a"])


@pytest.mark.parametrize("kind", KINDS)
def test_instants_far_away_are_exact_and_those_beyond_are_refused(tmp_path: Path, kind: str) -> None:
    far = [
        "1677-09-21T00:00:00.000001Z",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59.999999Z",
    ]
    name = write(tmp_path, kind, [row(str(n), at=at) for n, at in enumerate(far)])
    found = reading(tmp_path, name)
    assert sorted(found.batch.table["at"].to_pylist()) == sorted(int(Instant.parse(at)) for at in far)
    if kind == "parquet":
        beyond = pa.array([2**62, 0], pa.timestamp("us", "UTC"))
        table = pq.read_table(tmp_path / name).slice(0, 2)
        pq.write_table(table.set_column(1, "at", beyond), tmp_path / name)
    else:
        write(tmp_path, kind, [row("0", at="12013-07-01T12:00:00Z"), row("1", at="1970-01-01T00:00:00Z")])
    found = reading(tmp_path, name)
    assert keys(found) == ["1"]
    assert found.refused["reason"][0].as_py().startswith("at: expected instant, got ")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_zones_may_be_mixed_and_clocks_that_change_are_counted(tmp_path: Path, kind: str) -> None:
    texts = ["2013-11-03T01:30:00", "2013-11-03T01:30:00-05:00", "2013-03-10T02:30:00", "2013-07-01T12:00:00Z"]
    name = write(tmp_path, kind, [row(str(n), at=at) for n, at in enumerate(texts)])
    table = reading(tmp_path, name, zone="America/New_York").batch.table
    found = dict(zip(table["key"].to_pylist(), table["at"].to_pylist(), strict=True))
    told = {key: Instant(at).isoformat() for key, at in found.items()}
    assert told == {
        "0": "2013-11-03T05:30:00Z",  # the first of the two
        "1": "2013-11-03T06:30:00Z",
        "2": "2013-03-10T07:30:00Z",  # moved past the gap
        "3": "2013-07-01T12:00:00Z",
    }
    if kind == "csv":
        loaded = reading(tmp_path, name, zone="America/New_York")
        assert (loaded.ambiguous, loaded.nonexistent) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_past_2_53_are_exact_or_refused(tmp_path: Path, kind: str) -> None:
    odd = 2**53 + 1
    assert reading(tmp_path, write(tmp_path, kind, [row("a", count=odd)])).batch.table["count"].to_pylist() == [odd]
    if kind == "parquet":
        table = pa.table(
            {"key": ["a"], "at": pa.array([0], pa.timestamp("us", "UTC")), "count": pa.array([1], pa.int64())}
        )
        for wrong in (pa.array([odd]), pa.array([2**63], pa.uint64()), pa.array([Decimal(odd)], pa.decimal128(20, 0))):
            pq.write_table(table.append_column("size", wrong), tmp_path / "rows.parquet")
            with pytest.raises(SchemaChanged, match=r"Rows\.size was retyped"):
                reading(tmp_path, "rows.parquet")
        pq.write_table(
            table.append_column("size", pa.array([1.0])).set_column(2, "count", pa.array([2.0**60])),
            tmp_path / "rows.parquet",
        )
        with pytest.raises(SchemaChanged, match=r"Rows\.count was retyped"):
            reading(tmp_path, "rows.parquet")
        return
    found = reading(
        tmp_path, write(tmp_path, kind, [row("a", size=odd), row("b", size=2**53, count=1), row("c", count=2**63)])
    )
    assert keys(found) == ["b"]
    assert found.refused.num_rows == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_nan_and_infinity_are_read_as_what_they_are(tmp_path: Path, kind: str) -> None:
    rows = [row("a", size=float("nan")), row("b", size=float("inf")), row("c", size=-0.0)]
    found = reading(tmp_path, write(tmp_path, kind, rows)).batch.table.sort_by("key")
    assert [str(value) for value in found["size"].to_pylist()] == ["nan", "inf", "-0.0"]  # the gate refuses NaN


def test_nan_is_no_json(tmp_path: Path) -> None:
    name = write(tmp_path, "jsonl", [row("a", size=float("nan")), row("b", size=1)])
    found = reading(tmp_path, name)
    assert keys(found) == ["b"]
    assert found.refused["reason"][0].as_py().startswith("not a JSON object")


def test_decimals_are_the_nearest_floats_or_whole_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": ["a", "b"],
            "at": pa.array([0, 0], pa.timestamp("us", "UTC")),
            "size": pa.array([Decimal("0.1"), Decimal("123456789012345678.12")], pa.decimal128(20, 2)),
            "count": pa.array([Decimal(5), Decimal(2**62)], pa.decimal128(38, 0)),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    found = reading(tmp_path, "rows.parquet").batch.table.sort_by("key")
    assert found["size"].to_pylist() == [0.1, 123456789012345678.12]
    assert found["count"].to_pylist() == [5, 2**62]
    for wrong in (Decimal("1.5"), Decimal(2**63)):
        broken = table.set_column(3, "count", pa.array([wrong, None], pa.decimal128(22, 1)))
        pq.write_table(broken, tmp_path / "rows.parquet")
        with pytest.raises(SchemaChanged, match=r"Rows\.count was retyped"):
            reading(tmp_path, "rows.parquet")


def test_rows_of_another_length_are_refused_alone(tmp_path: Path) -> None:
    good = "".join(f"k{n},{AT},1,{n}\n" for n in range(50))
    (tmp_path / "rows.csv").write_text(
        HEADER + f"short,{AT}\n" + good + f"long,{AT},1,2,3,4\n" + good.replace("k", "m") + "x\n"
    )
    for limits in (None, LimitSettings(read_bytes=300)):
        found = reading(tmp_path, "rows.csv", limits)
        assert len(keys(found)) == 100
        assert found.rows == 103
        assert [p.rsplit("row ", 1)[1] for p in found.refused["position"].to_pylist()] == ["1", "52", "103"]
        assert found.refused["reason"].to_pylist()[:2] == [
            "2 cells, where the header has 4",
            "6 cells, where the header has 4",
        ]
        assert json.loads(found.refused["payload"][0].as_py()) == {"(line)": f"short,{AT}"}


def test_an_unclosed_quote_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(HEADER + f'"a,{AT},1,1\nb,{AT},1,1\nc,{AT},1,1\n')
    with pytest.raises(DataError, match="not a readable csv file"):
        reading(tmp_path, "rows.csv")


ENCODED: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "latin-1": lambda text: text.encode("latin-1"),
    "utf-16": lambda text: text.encode("utf-16"),
}


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_encodings_are_named_or_found_wrong(tmp_path: Path, encoding: str, kind: str) -> None:
    line = json.dumps(row("é", size=1, count=1), ensure_ascii=False) if kind == "jsonl" else HEADER + f"é,{AT},1,1"
    (tmp_path / f"rows.{kind}").write_bytes(ENCODED[encoding](line + "\n"))
    name, said = f"rows.{kind}", encoding.partition(" ")[0]
    assert keys(reading(tmp_path, name, encoding=said)) == ["é"]
    if said == "utf-16":
        with pytest.raises(DataError, match="a text that is not UTF-8") as error:
            reading(tmp_path, name)
        assert error.value.next_step == 'name it: [sources.Rows] encoding = "utf-16"'
    elif said == "latin-1" and kind == "csv":
        with pytest.raises(DataError, match="not a readable csv file") as error:
            reading(tmp_path, name)
        assert "Row #2" in str(error.value.got)
    elif said == "latin-1":
        assert keys(reading(tmp_path, name)) == []
        assert reading(tmp_path, name).refused.num_rows == 1


def test_columns_that_are_there_twice_stop_or_refuse(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("key,at,size,count,size\n" + f"a,{AT},1,1,2\n")
    with pytest.raises(SchemaChanged, match="size twice"):
        reading(tmp_path, "rows.csv")
    table = pa.table(
        [["a"], pa.array([0], pa.timestamp("us", "UTC")), [1.0], [1], [2.0]],
        names=["key", "at", "size", "count", "size"],
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(SchemaChanged, match="size twice"):
        reading(tmp_path, "rows.parquet")
    twice = [
        '{"key":"a","at":"%s","size":1,"count":1,"size":2}',
        '{"key":"b","at":"%s","size":1,"count":1,"\\u0073ize":2}',
    ]
    nested = '{"key":"c","at":"%s","size":1,"count":1,"more":{"size":3}}'
    (tmp_path / "rows.jsonl").write_text("\n".join(line % AT for line in [*twice, nested]))
    found = reading(tmp_path, "rows.jsonl")
    assert keys(found) == ["c"]
    assert found.refused.num_rows == 2


@pytest.mark.parametrize("kind", KINDS)
def test_10_000_columns_cost_only_those_that_are_declared(tmp_path: Path, kind: str) -> None:
    names = [f"c{n}" for n in range(10_000)]
    name = f"rows.{kind}"
    if kind == "csv":
        (tmp_path / name).write_text(
            HEADER.strip() + "," + ",".join(names) + "\n" + f"a,{AT},1,1" + ",0" * 10_000 + "\n"
        )
    elif kind == "jsonl":
        (tmp_path / name).write_text(json.dumps(row("a", size=1, count=1) | dict.fromkeys(names, 0)))
    else:
        table = pq.read_table(tmp_path / write(tmp_path, kind, [row("a", size=1.0, count=1)]))
        wide = pa.table([*table.columns, *[pa.array([0], pa.int8())] * 10_000], names=[*table.column_names, *names])
        pq.write_table(wide, tmp_path / name)
    found = reading(tmp_path, name)
    assert keys(found) == ["a"]
    assert len(found.extra) == 10_000
    many = {f"c{n}": column() for n in range(100)} | {"key": row_id(), "at": event_time()}
    hints = {f"c{n}": Column[int | None] for n in range(100)} | {"key": Column[str], "at": Column[Instant]}
    wide = definition_of(type("Wide", (Source,), {**many, "__annotations__": hints}))
    (reveal,) = load(wide, Settings(sources={"Wide": SourceSettings(path=name)}), tmp_path).batch.reveals()
    assert dict(zip((wide.columns[p].name for p in reveal.places), reveal.values, strict=True))["c99"] == 0


@pytest.mark.parametrize("content", [b"", HEADER.encode()])
def test_a_file_without_rows_is_empty_and_one_without_bytes_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    if not content:
        with pytest.raises(DataError, match="an empty file"):
            reading(tmp_path, "rows.csv")
        return
    found = reading(tmp_path, "rows.csv")
    assert (found.rows, len(found.batch)) == (0, 0)
    pq.write_table(
        pq.read_table(tmp_path / write(tmp_path, "parquet", [row("a")])).slice(0, 0), tmp_path / "rows.parquet"
    )
    assert reading(tmp_path, "rows.parquet").rows == 0
    (tmp_path / "rows.jsonl").write_text("")
    assert reading(tmp_path, "rows.jsonl").rows == 0


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_archive_gives_no_row_at_all(tmp_path: Path, kind: str, kept: float) -> None:
    name = write(tmp_path, kind, [row(f"k{n}", size=n / 7) for n in range(2_000)])
    whole = gzip.compress((tmp_path / name).read_bytes())
    (tmp_path / f"{name}.gz").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=f"not a readable {kind} file") as error:
        reading(tmp_path, f"{name}.gz", LimitSettings(read_bytes=4_096))
    assert f"{name}.gz" in str(error.value.where)
    (tmp_path / f"{name}.gz").write_bytes(whole)
    assert len(keys(reading(tmp_path, f"{name}.gz"))) == 2_000


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_longer_than_the_limit_is_refused_with_its_file(tmp_path: Path, kind: str) -> None:
    name = write(tmp_path, kind, [row("k" * 5_000), row("b")])
    with pytest.raises(DataError, match=f"not a readable {kind} file"):
        reading(tmp_path, name, LimitSettings(read_bytes=1_000))


def test_the_same_reveal_twice_is_one(tmp_path: Path) -> None:
    name = write(tmp_path, "csv", [row("a", size=1), row("a", size=1), row("a", size=2), row("b", size=1)])
    found = reading(tmp_path, name).batch.table
    assert sorted(zip(found["key"].to_pylist(), found["size"].to_pylist(), strict=True)) == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
    ]
