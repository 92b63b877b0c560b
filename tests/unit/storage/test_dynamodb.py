"""What the key-value contract cannot see from outside: large values, lost leases, a server that fails, other layouts."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any

import boto3
import pytest

from headrace.core.errors import BadUrl, ConfigurationError, Corrupt, Unavailable
from headrace.core.failpoints import armed
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.proxy import Proxy
from tests.servers import DynamoServer

LARGE = bytes(range(256)) * 4_000  # 1 MB


@pytest.fixture
def url(dynamodb: DynamoServer) -> str:
    return dynamodb.url(timeout="10s")


def opened(url: str, **settings: Any) -> KeyValue:
    return open_keyvalue(url, databases=["d"], **settings)


def put(store: KeyValue, **values: bytes | None) -> None:
    with store.write() as transaction:
        for key, value in values.items():
            if value is None:
                transaction.delete("d", key.encode())
            else:
                transaction.put("d", key.encode(), value)


def raw(server: DynamoServer, url: str) -> Any:
    """Return the table as boto3 shows it."""
    resource = boto3.resource("dynamodb", region_name="eu-west-1", endpoint_url=f"http://127.0.0.1:{server.port}")
    return resource.Table(url.partition(":")[2].partition("?")[0])


def partitions(server: DynamoServer, url: str) -> Counter[str]:
    """Count the items of each partition; names of transactions are left out."""
    table, rows = raw(server, url), list[Any]()
    start: dict[str, Any] = {}
    while True:
        page = table.scan(ProjectionExpression="pk", **start)
        rows += page["Items"]
        if "LastEvaluatedKey" not in page:
            break
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
    return Counter(row["pk"].split("/")[1] or "state" if row["pk"].startswith("/") else row["pk"] for row in rows)


def test_values_of_any_size_come_back_and_leave_nothing_behind(dynamodb: DynamoServer, url: str) -> None:
    """Above 400 kB too; a value that shrinks or goes takes its parts with it, whichever process wrote them."""
    with opened(url) as store:
        put(store, a=LARGE, b=b"small", c=LARGE[:40_000])
        with store.read() as view:
            assert view.get_many("d", [b"a", b"b", b"c"]) == [LARGE, b"small", LARGE[:40_000]]
            assert list(view.items("d")) == [(b"a", LARGE), (b"b", b"small"), (b"c", LARGE[:40_000])]
        assert partitions(dynamodb, url) == {"d": 3, "large": 2, "parts": 4, "state": 1}
        put(store, a=LARGE[::-1])
        with store.write() as transaction:
            assert transaction.get("d", b"a") == LARGE[::-1]
    with opened(url) as other:
        put(other, a=b"short now", c=None)
        with other.read() as view:
            assert list(view.items("d")) == [(b"a", b"short now"), (b"b", b"small")]
    assert partitions(dynamodb, url) == {"d": 2, "state": 1}


def test_many_rows_large_ones_among_them_are_one_transaction(dynamodb: DynamoServer, url: str) -> None:
    with opened(url) as store:
        put(store, gone=LARGE[:50_000], **{f"k{n:03d}": b"old" for n in range(100)})
        put(store, gone=None, large=LARGE, **{f"k{n:03d}": b"new" if n % 2 else None for n in range(100)})
        wanted = [(b"k%03d" % n, b"new") for n in range(1, 100, 2)] + [(b"large", LARGE)]
        with store.read() as view:
            assert list(view.items("d")) == wanted
            assert view.count("d") == len(wanted)
    assert partitions(dynamodb, url) == {"d": 51, "large": 1, "parts": 3, "state": 1}


@pytest.mark.parametrize(
    ("point", "committed"),
    [("after_parts", False), ("after_journal", False), ("after_decision", True), ("after_step", True)],
)
def test_a_commit_that_broke_off_is_finished_or_undone_by_the_next_one(
    dynamodb: DynamoServer, url: str, point: str, committed: bool
) -> None:
    """In the same process, which goes on; until then readers see all of it or nothing."""
    old, new = {f"k{n:03d}": b"old" for n in range(100)}, {f"k{n:03d}": b"new" for n in range(100)}
    with opened(url) as store:
        put(store, **old)
        with armed(f"keyvalue.{point}:raise"), pytest.raises(Unavailable):
            put(store, large=LARGE, **new)
        wanted = {key.encode(): value for key, value in (new | {"large": LARGE} if committed else old).items()}
        with store.read() as view:
            assert view.get_many("d", list(wanted)) == list(wanted.values())
            assert dict(view.items("d")) == wanted
        put(store, k000=b"newer")
        with store.read() as view:
            assert dict(view.items("d")) == wanted | {b"k000": b"newer"}
        put(store, large=None)
    assert partitions(dynamodb, url) == {"d": 100, "state": 1}


WRITER = """
import sys
from headrace.core.errors import Conflict
from headrace.storage.keyvalue import open_keyvalue
store = open_keyvalue(sys.argv[1], databases=["d"])
try:
    with store.write() as transaction:
        transaction.put("d", b"stale", b"1")
        print("open", flush=True)
        sys.stdin.readline()
except Conflict as error:
    print(error.what, flush=True)
store.close()
"""


def test_a_writer_that_slept_through_its_lease_commits_nothing(url: str) -> None:
    url += "&lease=300ms"
    asleep = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asleep.stdout is not None
    assert asleep.stdout.readline() == "open\n"
    asleep.send_signal(signal.SIGSTOP)
    with opened(url) as store:
        put(store, fresh=b"1")
        asleep.send_signal(signal.SIGCONT)
        told, _ = asleep.communicate("\n", timeout=60)
        assert told == "another writer took over while this transaction was open\n"
        with store.read() as view:
            assert list(view.items("d")) == [(b"fresh", b"1")]


def test_an_open_transaction_shows_that_it_lives_and_the_next_writer_waits(url: str) -> None:
    url += "&lease=300ms"
    with opened(url) as first, opened(url) as second:
        with first.write() as transaction:
            late = threading.Thread(target=put, args=(second,), kwargs={"a": b"second"})
            late.start()
            time.sleep(0.8)
            transaction.put("d", b"a", b"first")
        late.join()
        with first.read() as view:
            assert view.get("d", b"a") == b"second"


def test_who_will_not_wait_is_told_that_another_writes(url: str) -> None:
    with opened(url) as first, opened(url + "&wait=50ms") as second, first.write():
        with pytest.raises(Unavailable) as caught, second.write():
            pass
        assert caught.value.what == "the store has another writer"


def test_an_unreachable_server_is_unavailable_and_back_when_it_is(dynamodb: DynamoServer) -> None:
    proxy = Proxy(dynamodb.port)
    try:
        with opened(DynamoServer(proxy.port).url(timeout="200ms", commit="10s")) as store:
            put(store, a=b"1")
            for fault in ("refuse", "cut", "half", "delay"):
                proxy.spoil(fault)
                with store.read() as view, pytest.raises(Unavailable, match="DynamoDB"):
                    view.get("d", b"a")
                proxy.spoil("pass")
                with store.read() as view:
                    assert view.get("d", b"a") == b"1"
    finally:
        proxy.close()


def test_without_credentials_the_operator_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigurationError, match="DynamoDB refuses the call") as caught:
        opened(url)
    assert caught.value.next_step == "check credentials, region and rights"


def test_a_reader_does_not_create_a_store(url: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no key-value store"):
        opened(url, read_only=True)


def test_a_layout_of_another_version_is_refused(dynamodb: DynamoServer, url: str) -> None:
    opened(url).close()
    raw(dynamodb, url).update_item(
        Key={"pk": "/", "sk": b"state"},
        UpdateExpression="SET hr_format = :f",
        ExpressionAttributeValues={":f": 9},
    )
    with pytest.raises(ConfigurationError, match="written by another version"):
        opened(url)


def test_parts_that_somebody_else_removed_are_damage(dynamodb: DynamoServer, url: str) -> None:
    with opened(url) as store:
        put(store, a=LARGE)
        table = raw(dynamodb, url)
        (part, *_) = [row for row in table.scan()["Items"] if row["pk"].startswith("/parts/")]
        table.delete_item(Key={"pk": part["pk"], "sk": part["sk"]})
        with pytest.raises(Corrupt, match="the store is damaged"):
            store.digest()


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("", "not a dynamodb URL"),
        ("ab", "not a dynamodb URL"),
        ("//table", "not a dynamodb URL"),
        ("table?regoin=x", "dynamodb has no setting regoin"),
        ("table?lease=1", "lease does not fit"),
        ("table", "DynamoDB refuses the call"),
    ],
)
def test_a_url_that_does_not_fit_is_refused(location: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises((BadUrl, ConfigurationError), match=what):
        opened(f"dynamodb:{location}")
