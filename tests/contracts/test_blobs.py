"""Enroll every embedded store of blobs in the blobs contract."""

from headrace.testing import enrolled
from headrace.testing.blobs import BlobsContract

globals().update(enrolled(BlobsContract, "blobs"))
