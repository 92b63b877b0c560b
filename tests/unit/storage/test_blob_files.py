"""What the blob contract cannot see from outside: files, links, flipped bytes."""

from pathlib import Path

import pytest

from headrace.core.errors import ConfigurationError, Corrupt, Unavailable
from headrace.core.failpoints import armed
from headrace.storage.blobs import open_blobs


def stored(path: Path, data: bytes) -> tuple[str, Path]:
    digest = open_blobs(f"file:{path}").put(data).digest
    return digest, path / digest[:2] / digest[2:]


@pytest.mark.parametrize("damage", [b"", b"dat", b"datA", b"data\0"])
def test_other_bytes_are_never_returned_and_putting_again_repairs(tmp_path: Path, damage: bytes) -> None:
    store = open_blobs(f"file:{tmp_path}")
    digest, file = stored(tmp_path, b"data")
    file.write_bytes(damage)
    with pytest.raises(Corrupt, match="not those that were stored") as caught:
        store.get(digest)
    assert caught.value.where == str(file)
    store.put(b"data")
    assert store.get(digest) == b"data"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    store = open_blobs(f"file:{tmp_path / 's'}")
    digest, file = stored(tmp_path / "s", b"data")
    (tmp_path / "outside").write_bytes(b"data")
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigurationError):
        store.get(digest)
    with pytest.raises(ConfigurationError):
        store.has([digest])
    with pytest.raises(ConfigurationError):
        store.put(b"data")
    assert (tmp_path / "outside").read_bytes() == b"data"


def test_nothing_unfinished_is_listed_or_left(tmp_path: Path) -> None:
    stored(tmp_path, b"data")
    with armed("blobs.before_rename:raise"), pytest.raises(Unavailable):
        stored(tmp_path, b"other")
    assert list((tmp_path / "incoming").iterdir()) == []
    (tmp_path / "incoming" / "1-2").write_bytes(b"half")
    assert len(list(open_blobs(f"file:{tmp_path}").list())) == 1
