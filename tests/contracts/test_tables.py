"""Enroll every store of tables in the tables contract."""

from __future__ import annotations

import pytest

from headrace.core.settings import S3Settings
from headrace.storage.tables import Tables, open_tables
from headrace.testing import enrolled
from headrace.testing.tables import TablesContract
from tests.servers import ObjectServer

globals().update(enrolled(TablesContract, "tables"))


class TestS3(TablesContract):
    """Tables in object storage."""

    settings: S3Settings

    @pytest.fixture
    def url(self, objects: ObjectServer) -> str:
        """Return a prefix of a new bucket."""
        self.settings = S3Settings(endpoint=objects.endpoint, region="us-east-1", access_key="test", secret_key="test")
        return f"s3:{objects.bucket()}/some/prefix"

    def opened(self, url: str) -> Tables:
        """Open the store of a URL."""
        return open_tables(url, s3=self.settings)
