"""Hand out tables to fill a store with, from memory or from small buckets in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

import pyarrow as pa

from headrace.engines.local import LocalEngine
from headrace.features.buckets import BucketedPast
from headrace.features.lane_plan import GroupPlan
from headrace.features.stock import BucketedStock, Stock, WholeStock
from headrace.sources.definition import SourceDefinition
from headrace.sources.record import ROW_ID


def stock_of(
    sources: Sequence[SourceDefinition],
    groups: Sequence[GroupPlan],
    tables: Mapping[str, pa.Table],
    newest: int,
    folder: Path | str | None = None,
    bucket_rows: int = 40,
) -> Stock:
    """Return tables in memory; with a folder, in buckets of a few rows that lie there."""
    if folder is None:
        return WholeStock(sources, tables, newest)
    lanes = [lane for group in groups for lane in group.lanes]
    return BucketedStock(
        BucketedPast(
            sources,
            lanes,
            tables,
            as_of=newest,
            engine=LocalEngine(),
            folder=Path(mkdtemp(dir=folder)),
            bucket_rows=bucket_rows,
            living=True,
            samples={name: sorted(table[ROW_ID].to_pylist())[::5] for name, table in tables.items()},
        )
    )
