"""Compare what different ways leave in an online store."""

import hashlib

from headrace.features.stream import COMMITS, DATABASE
from headrace.pipelines.stores import APART, APPLIED
from headrace.storage.keyvalue import KeyValue


def applied_digest(store: KeyValue) -> str:
    """Return the digest of all rows of the features, but for the numbers that count commits."""
    found = hashlib.sha256()
    with store.read() as snapshot:
        for key, value in snapshot.items(DATABASE):
            if not key.startswith((APPLIED, APART, COMMITS)):
                found.update(b"%d %d " % (len(key), len(value)) + key + value)
    return found.hexdigest()
