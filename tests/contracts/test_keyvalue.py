"""Enroll every key-value store in the key-value contract; servers are real ones on loopback."""

from __future__ import annotations

import pytest

from headrace.testing import enrolled
from headrace.testing.keyvalue import KeyValueContract
from tests.servers import DynamoServer, RedisServer

globals().update(enrolled(KeyValueContract, "keyvalue"))


class TestRedis(KeyValueContract):
    """Check Redis."""

    scheme = "redis"

    @pytest.fixture
    def url(self, redis: RedisServer) -> str:
        """Return a prefix of its own on the shared server."""
        return redis.url()


class TestDynamodb(KeyValueContract):
    """Check DynamoDB."""

    scheme = "dynamodb"
    examples = 5
    rounds = 2

    @pytest.fixture
    def url(self, dynamodb: DynamoServer) -> str:
        """Return a table of its own on the shared server."""
        return dynamodb.url(timeout="10s")
