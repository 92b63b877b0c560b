"""A value that shrinks keeps its pages in LMDB; the store is whole all the same."""

from __future__ import annotations

from pathlib import Path

from headrace.storage.keyvalue import open_keyvalue


def test_a_store_whose_values_shrank_opens_again(tmp_path: Path) -> None:
    url = f"lmdb:{tmp_path / 'store'}"
    for size in (9_000, 6_000, 2_900):
        with open_keyvalue(url, databases=["online"]) as store, store.write() as transaction:
            for number in range(50):
                transaction.put("online", b"key %d" % number, b"x" * size)
    with open_keyvalue(url, databases=["online"]) as store, store.read() as snapshot:
        assert snapshot.get("online", b"key 7") == b"x" * 2_900
