"""Enroll every embedded store of streams in the streams contract."""

from headrace.testing import enrolled
from headrace.testing.streams import StreamsContract

globals().update(enrolled(StreamsContract, "streams"))
