"""Write numbered items into a store for ever, printing each number once it is acknowledged; killed by its test.

Usage: storage_worker.py SHAPE PLACE STOP. The place is a folder, or a server's URL. It goes on behind the last item that
the store holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from headrace.core.time import SystemClock
from headrace.storage.blobs import open_blobs
from headrace.storage.keyvalue import open_keyvalue
from headrace.storage.ledger import Entry, open_ledger
from headrace.storage.streams import Cursor, open_streams
from headrace.storage.tables import Position, open_tables

Item = Callable[[int], object]
ROWS = 120  # more than DynamoDB changes together


def ledger(folder: Path) -> tuple[list[int], Item]:
    """Append a record, a pointer move and a metric point."""
    store = open_ledger(f"sqlite:{folder / 'l'}", clock=SystemClock())
    result = store.verify()
    assert result.ok, result
    held = [record.body["n"] for record in store.read(limit=10**6)]
    assert store.pointers() == ({"newest": str(held[-1])} if held else {})
    assert [step for step, _ in store.series("s").get("m", [])] == held

    def write(number: int) -> None:
        entry = Entry("item", "s", {"n": number}, series={"m": [(number, 0.5)]})
        store.append([entry], pointers={"newest": str(number)}, expect={"newest": str(number - 1) if number else None})

    return held, write


def keyvalue(folder: Path) -> tuple[list[int], Item]:
    """Put a row and move a counter in another database."""
    store = open_keyvalue(f"lmdb:{folder}", databases=["rows", "applied"])
    with store.read() as snapshot:
        held = [int(key) for key, _ in snapshot.items("rows")]
        assert int(snapshot.get("applied", b"end") or b"0") == len(held)

    def write(number: int) -> None:
        with store.write() as transaction:
            transaction.put("rows", b"%08d" % number, b"v" * 300)
            transaction.put("applied", b"end", b"%d" % (number + 1))

    return held, write


def remote(url: str) -> tuple[list[int], Item]:
    """Put many rows and move a counter, in transactions that take a while to send."""
    store = open_keyvalue(url, databases=["rows", "applied"])
    with store.read() as snapshot:
        keys = [key for key, _ in snapshot.items("rows")]
        held = [int(key[:8]) for key in keys[::ROWS]]
        assert keys == [b"%08d-%03d" % (item, part) for item in held for part in range(ROWS)]
        assert int(snapshot.get("applied", b"end") or b"0") == len(held)

    def write(number: int) -> None:
        with store.write() as transaction:
            for part in range(ROWS):
                transaction.put("rows", b"%08d-%03d" % (number, part), b"v" * 1_000)
            transaction.put("applied", b"end", b"%d" % (number + 1))

    return held, write


def blobs(folder: Path) -> tuple[list[int], Item]:
    """Store a blob of many pages."""
    store = open_blobs(f"file:{folder}")
    held = sorted(int(store.get(blob.digest)[:8]) for blob in store.list())
    return held, lambda number: store.put(b"%08d" % number * 5_000)


def tables(folder: Path) -> tuple[list[int], Item]:
    """Append a row with its position, after trying the one before again."""
    store = open_tables(f"delta:{folder}")
    description = store.describe("t", applications=["source"])
    held = sorted(store.read("t").column("n").to_pylist()) if description else []
    assert description is None or description.positions["source"] == (held[-1] if held else None)

    def write(number: int) -> None:
        import pyarrow as pa

        for position in (number - 1, number):
            if position >= 0:
                store.append("t", pa.table({"n": [position]}), position=Position("source", position))

    return held, write


def streams(folder: Path) -> tuple[list[int], Item]:
    """Append a batch of two records; segments are small."""
    store = open_streams(f"log:{folder}", clock=SystemClock(), segment_bytes=400)
    messages = store.read("s", {0: Cursor()}, 10**6)
    held = [int(message.data) for message in messages]
    assert held[::2] == held[1::2]
    arrivals = [message.arrival for message in messages]
    assert arrivals == sorted(arrivals)
    return held[::2], lambda number: store.append("s", [b"%08d" % number] * 2)


SHAPES = {"ledger": ledger, "keyvalue": keyvalue, "blobs": blobs, "tables": tables, "streams": streams}
SERVERS = {"redis": remote, "dynamodb": remote}


def main(shape: str, place: str, stop: int) -> None:
    """Say what the store holds, then write until item `stop`, saying each."""
    held, write = SERVERS[shape](place) if shape in SERVERS else SHAPES[shape](Path(place))
    assert held == list(range(len(held))), held
    say(f"held {len(held)}")
    for number in range(len(held), stop):
        write(number)
        say(str(number))


def say(text: str) -> None:
    """Tell the test at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
