"""Enroll every embedded key-value store in the key-value contract."""

from headrace.testing import enrolled
from headrace.testing.keyvalue import KeyValueContract

globals().update(enrolled(KeyValueContract, "keyvalue"))
