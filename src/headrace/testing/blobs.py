"""Check the promises of `headrace.storage.blobs.protocol` on any blob store."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.errors import ConfigurationError, DataError, Unavailable
from headrace.core.failpoints import armed
from headrace.storage.blobs import Blob, Blobs, open_blobs

ABSENT = hashlib.sha256(b"never stored").hexdigest()


class BlobsContract:
    """Check one blob backend; a subclass names its scheme, or overrides `url`."""

    scheme: ClassVar[str]

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return the URL of a store that does not exist yet."""
        return f"{self.scheme}:{tmp_path / 'store'}"

    @pytest.fixture
    def store(self, url: str) -> Blobs:
        """Return a fresh store."""
        return open_blobs(url)

    def test_any_bytes_come_back(self, store: Blobs, url: str) -> None:
        """Under the SHA-256 of themselves, through another object too."""

        @settings(max_examples=25, deadline=None)
        @given(data=st.binary(max_size=200))
        def check(data: bytes) -> None:
            blob = store.put(data)
            assert blob == Blob(hashlib.sha256(data).hexdigest(), len(data))
            assert open_blobs(url).get(blob.digest) == data

        check()

    def test_a_file_is_stored_by_its_content(self, store: Blobs, tmp_path: Path) -> None:
        """A file of several pieces has the digest of its bytes; an absent one is a DataError."""
        data = bytes(range(256)) * 10_000
        (tmp_path / "model").write_bytes(data)
        blob = store.put(tmp_path / "model")
        assert blob == store.put(data)
        assert store.get(blob.digest) == data
        with pytest.raises(DataError, match="cannot be read"):
            store.put(tmp_path / "absent")

    def test_the_store_says_what_it_holds(self, store: Blobs) -> None:
        """`list`, `has` and `delete` agree; equal bytes are held once."""
        assert list(store.list()) == []
        blobs = sorted((store.put(data) for data in (b"a", b"bb", b"", b"a")), key=lambda blob: blob.digest)
        assert list(store.list()) == sorted(set(blobs), key=lambda blob: blob.digest)
        digests = [blob.digest for blob in blobs]
        assert store.has([*digests, ABSENT]) == set(digests)
        gone = digests[0]
        store.delete([gone, ABSENT])
        assert store.has(digests) == set(digests) - {gone}
        with pytest.raises(DataError, match="no such blob"):
            store.get(gone)

    @pytest.mark.parametrize("name", ["", "..", "../" * 8, "a" * 63, "A" * 64, "a" * 62 + "/x", "a" * 64 + "\n"])
    def test_only_digests_reach_the_store(self, store: Blobs, name: str) -> None:
        """Any other name is refused before anything is looked up."""
        with pytest.raises(ConfigurationError, match="not a blob's name"):
            store.get(name)
        with pytest.raises(ConfigurationError):
            store.has([name])
        with pytest.raises(ConfigurationError):
            store.delete([name])

    def test_a_failing_disk_is_unavailable_and_stores_nothing(self, store: Blobs) -> None:
        """The error is typed and retryable, the next try succeeds."""
        with armed("blobs.before_rename:raise"), pytest.raises(Unavailable):
            store.put(b"data")
        assert list(store.list()) == []
        assert store.get(store.put(b"data").digest) == b"data"

    def test_a_blob_is_never_seen_unfinished(self, store: Blobs, url: str) -> None:
        """Who finds it under its name, while it is being stored, finds all of it."""
        data = bytes(range(256)) * 100_000
        digest = hashlib.sha256(data).hexdigest()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.put, data)
            while not writing.done():
                if open_blobs(url).has([digest]):
                    assert len(open_blobs(url).get(digest)) == len(data)
        assert writing.result().digest == digest

    def test_concurrent_puts_of_the_same_bytes_agree(self, store: Blobs) -> None:
        """Eight threads store the same and different bytes; every blob is whole."""
        contents = [b"same" * 10_000, *(bytes([number]) * 10_000 for number in range(7))] * 4
        with ThreadPoolExecutor(8) as pool:
            blobs = list(pool.map(store.put, contents))
        assert [store.get(blob.digest) for blob in blobs] == contents
        assert len(list(store.list())) == 8
