"""Settings that every test shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.servers import (
    CREDENTIALS,
    DynamoServer,
    ObjectServer,
    RedisServer,
    dynamo_server,
    object_server,
    redis_server,
)

# A deadline would be a timing assertion. The same examples run everywhere, so a red run can be repeated.
settings.register_profile(
    "headrace", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("headrace")


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run one Redis server for all tests of a process; each test takes a prefix of its own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DynamoServer]:
    """Run one DynamoDB for all tests of a process; each test takes a table of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with dynamo_server(tmp_path_factory.mktemp("dynamodb")) as server:
            yield server


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """Run one S3 for all tests of a process; each test takes a bucket of its own."""
    with object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server
