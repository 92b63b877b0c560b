"""Look for a value in every file of a state folder, also inside compressed pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.core.identity import canonical, encode_key
from headrace.core.texts import spell
from headrace.pipelines.stores import DATABASES, Stores
from headrace.storage.keyvalue import KeyValue
from headrace.storage.ledger import Ledger

SHORT = 4  # bytes; a shorter text stands in any file by chance, so it is looked for as a key and in quotes


@dataclass(frozen=True)
class Remains:
    """Hold where a value still stands: files of the state folder (names from there), numbers of ledger records, and, in
    sentences, what lies elsewhere or cannot be told.
    """

    files: tuple[str, ...]
    records: tuple[int, ...]
    elsewhere: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.records or self.elsewhere)

    def counts(self) -> dict[str, int]:
        """Return how many there are."""
        return {"files": len(self.files), "records": len(self.records), "elsewhere": len(self.elsewhere)}

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    def notes(self) -> list[str]:
        """Return what can be done about it."""
        found = []
        if any(file.startswith("blobs/") for file in self.files):
            found.append(
                f"Models hold it among their categories: train again, then archive those versions: {self.files}"
            )
        elif self.files:
            found.append(f"These files hold it: {', '.join(self.files)}")
        if self.records:
            found.append(f"Ledger records hold it and cannot be changed: {', '.join(map(str, self.records))}")
        return [*found, *self.elsewhere]


def remains_of(
    folder: Path, value: Any, longer: Sequence[str], stores: Stores, elsewhere: Sequence[str] = ()
) -> Remains:
    """Return where a value stands; `longer` are other values of which it is a part, which do not count.

    An online store on a server is gone through row by row.
    """
    needles, others = list(_needles(value)), [text.encode() for text in longer]
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(("ledger/", "erasures/")):
            continue  # the ledger is gone through by record; what an erasure keeps beside it goes with its end
        if _stands(path.read_bytes(), needles, others) or (path.suffix == ".parquet" and _in_table(path, value)):
            files.append(name)
    told = list(elsewhere)
    if stores.online.capabilities.remote:
        rows = sum(_stands(row, needles, others) for row in _rows_of(stores.online))
        told += [f"{rows:,} rows of the online store hold it"] if rows else []
    return Remains(tuple(files), tuple(_records(stores.ledger, needles, others)), tuple(told))


def _rows_of(online: KeyValue) -> Iterator[bytes]:
    with online.read() as snapshot:
        for database in DATABASES:
            for key, value in snapshot.items(database):
                yield key + value


def _needles(value: Any) -> Iterator[bytes]:
    key = encode_key([value])
    if key is not None:
        yield key
    if isinstance(value, str):
        raw = value.encode()
        yield raw if len(raw) >= SHORT else f'"{value}"'.encode()
        spelled = spell(raw)
        if spelled is not None:
            yield spelled.to_bytes(8, "little", signed=True)


def _stands(content: bytes, needles: Sequence[bytes], others: Sequence[bytes]) -> bool:
    if not any(needle in content for needle in needles):
        return False
    for other in others:
        content = content.replace(other, b"\0")
    return any(needle in content for needle in needles)


def _in_table(path: Path, value: Any) -> bool:
    table = pq.read_table(path)
    for column in table.columns:
        same = pa.types.is_string(column.type) if isinstance(value, str) else pa.types.is_int64(column.type)
        if same and pc.any(pc.equal(column, value)).as_py():
            return True
    return False


def _records(ledger: Ledger, needles: Sequence[bytes], others: Sequence[bytes]) -> Iterator[int]:
    after = 0
    while page := ledger.read(after=after):
        for record in page:
            told = canonical([record.subject, record.actor, dict(record.body), dict(record.pointers)])
            if _stands(told, needles, others):
                yield record.seq
        after = page[-1].seq
