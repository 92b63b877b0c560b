"""Name a training set by its content: equal rows, features and labels give equal digests, whatever built them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.identity import canonical
from headrace.features.record import TrainingSet

if TYPE_CHECKING:
    import pyarrow as pa


def content_digest(found: TrainingSet) -> str:
    """Return the SHA-256 of a training set's moments, labels, rows and features: bit by bit, in their order."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(found.t).tobytes())
    digest.update(canonical([list(found.names), found.weight is not None]))
    digest.update(np.ascontiguousarray(found.label).tobytes())
    digest.update(b"" if found.weight is None else np.ascontiguousarray(found.weight).tobytes())
    for table in (found.rows, found.features):
        for name in table.column_names:
            digest.update(canonical([name, str(table[name].type), len(table)]))
            _update(digest, table[name])
    return digest.hexdigest()


def _update(digest: hashlib._Hash, column: pa.ChunkedArray) -> None:
    """Take in a column's values and which of them are null, however it is cut into chunks."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest.update(column.is_null().to_numpy().tobytes())
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        plain = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        digest.update(np.ascontiguousarray(pc.fill_null(plain, 0).to_numpy()).tobytes())
        return
    encoded = column.combine_chunks().dictionary_encode()
    digest.update(pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).tobytes())
    digest.update(canonical([str(value) for value in encoded.dictionary.to_pylist()]))
