"""What the key-value contract cannot see from outside: lost leases, a server that fails, settings, other layouts."""

from __future__ import annotations

import datetime
import ipaddress
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from headrace.core.errors import BadUrl, ConfigurationError, Corrupt, HeadraceError, Unavailable
from headrace.storage.keyvalue import KeyValue, open_keyvalue
from headrace.testing.proxy import Proxy
from tests.servers import RedisServer, redis_server

KEYS = [b"k%02d" % number for number in range(20)]
FAULTS = ["delay", "cut", "reset", "half", "drip", "refuse"]


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def url(redis: RedisServer, prefix: str) -> str:
    return f"{redis.address}?prefix={prefix}"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """Run a server of the test's own, which it may spoil."""
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[Proxy]:
    found = Proxy(redis.port)
    yield found
    found.close()


def opened(url: str, **settings: Any) -> KeyValue:
    return open_keyvalue(url, databases=["d"], **settings)


def raw(server: RedisServer) -> Any:
    return client.Redis(port=server.port)


def fill(store: KeyValue, text: bytes = b"value of ") -> None:
    with store.write() as transaction:
        for key in KEYS:
            transaction.put("d", key, text + key)


def try_read(store: KeyValue, keys: list[bytes] = KEYS) -> list[bytes | None] | HeadraceError:
    try:
        with store.read() as view:
            return view.get_many("d", keys)
    except HeadraceError as error:
        return error


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
    url += "&lease=100ms"
    asleep = subprocess.Popen(
        [sys.executable, "-c", WRITER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asleep.stdout is not None
    assert asleep.stdout.readline() == "open\n"
    asleep.send_signal(signal.SIGSTOP)
    with opened(url) as store:
        fill(store)
        asleep.send_signal(signal.SIGCONT)
        told, _ = asleep.communicate("\n", timeout=60)
        assert told == "another writer took over while this transaction was open; nothing was written\n"
        with store.read() as view:
            assert (view.get("d", b"stale"), view.count("d")) == (None, len(KEYS))


def test_an_open_transaction_keeps_its_lease_and_the_next_writer_waits(url: str) -> None:
    with opened(url + "&lease=100ms") as first, opened(url + "&wait=30s") as second:
        with first.write() as transaction:
            late = threading.Thread(target=fill, args=(second, b"second "))
            late.start()
            time.sleep(0.5)
            transaction.put("d", KEYS[0], b"first")
            assert transaction.get("d", KEYS[0]) == b"first"
        late.join()
        assert try_read(first, KEYS[:1]) == [b"second " + KEYS[0]]


def test_who_will_not_wait_is_told_that_another_writes(url: str) -> None:
    with opened(url) as first, opened(url + "&wait=50ms") as second, first.write():
        with pytest.raises(Unavailable, match="the store has another writer") as caught, second.write():
            pass
        assert caught.value.got == "another process writes"


def test_a_transaction_sees_none_but_its_own_changes_however_large_it_is(url: str) -> None:
    """Groups and pages have seams; walks, counts and reads go over them."""
    with opened(url) as store:
        with store.write() as transaction:
            for number in range(0, 12_000, 2):
                transaction.put("d", b"%06d" % number, b"v" * 3_000)
        with store.write() as transaction:
            for number in range(1, 3_000, 2):
                transaction.put("d", b"%06d" % number, b"new")
            for number in range(0, 12_000, 3):
                transaction.delete("d", b"%06d" % number)
            rows = {b"%06d" % n: b"v" * 3_000 for n in range(0, 12_000, 2)}
            rows |= {b"%06d" % n: b"new" for n in range(1, 3_000, 2)}
            rows = {key: rows[key] for key in sorted(rows) if int(key) % 3}
            assert list(transaction.items("d")) == list(rows.items())
            assert transaction.count("d") == len(rows)
            assert list(transaction.items("d", b"0029", b"002990")) == [
                row for row in rows.items() if b"002990" < row[0] < b"0030"
            ]
            assert transaction.get_many("d", list(rows)) == list(rows.values())
        with store.read() as view:
            assert list(view.items("d")) == list(rows.items())
            assert view.count("d") == len(rows)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_server_is_unavailable_and_never_a_wrong_value(proxy: Proxy, prefix: str, fault: str) -> None:
    """Under the fault every read ends as Unavailable or with the right values; after it the next one is right again."""
    wanted = [b"value of " + key for key in KEYS]
    with opened(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}&timeout=100ms&commit=30s") as store:
        fill(store)
        for _ in range(2):
            assert try_read(store) == wanted
            proxy.spoil(fault)
            for _ in range(3):
                outcome = try_read(store)
                assert isinstance(outcome, Unavailable), outcome
                assert outcome.retryable
            proxy.spoil("pass")
            for key in KEYS:
                assert try_read(store, [key]) == [b"value of " + key]


@pytest.mark.parametrize("fault", ["cut", "reset", "half", "refuse"])
def test_a_commit_without_an_answer_was_whole_or_nothing(redis: RedisServer, prefix: str, fault: str) -> None:
    proxy = Proxy(redis.port)
    url = f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}&timeout=100ms&commit=300ms&wait=100ms&lease=200ms"
    try:
        with opened(url) as store, opened(f"{redis.address}?prefix={prefix}") as witness:
            fill(store)

            def write() -> None:
                with store.write() as transaction:
                    for key in KEYS:
                        transaction.put("d", key, b"second " + key)
                    proxy.spoil(fault)

            with pytest.raises(Unavailable, match="Redis") as caught:
                write()
            assert caught.value.next_step is not None
            found = try_read(witness)
            assert found in ([b"value of " + key for key in KEYS], [b"second " + key for key in KEYS])
            proxy.spoil("pass")
            with opened(f"{redis.address}?prefix={prefix}&wait=30s") as again:
                fill(again, b"third ")
            assert try_read(witness) == [b"third " + key for key in KEYS]
    finally:
        proxy.close()


class _InterruptError(BaseException):
    """Stand for a Ctrl-C or a cancelled request."""


def test_a_cancelled_read_leaves_its_reply_to_nobody_else(proxy: Proxy, prefix: str) -> None:
    def interrupt(*_: object) -> None:
        raise _InterruptError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with opened(f"redis://127.0.0.1:{proxy.port}/0?prefix={prefix}&timeout=5s") as store:
            fill(store)
            for key in KEYS[:3]:
                proxy.spoil("delay")
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                with pytest.raises(_InterruptError):
                    try_read(store, [key])
                proxy.spoil("pass")
                time.sleep(0.4)  # the late reply has arrived by now
                assert try_read(store, KEYS[5:7]) == [b"value of " + other for other in KEYS[5:7]]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_server_that_was_killed_comes_back_with_all_that_was_acknowledged(own: RedisServer) -> None:
    """Connections from before do not matter, for readers nor for writers."""
    with opened(own.address) as store:
        fill(store)
        for step in range(2):
            assert try_read(store) == [b"value of " + key for key in KEYS]
            own.stop()
            assert isinstance(try_read(store), Unavailable)
            with pytest.raises(Unavailable), store.write():
                pass
            own.start()
            if step == 0:
                assert try_read(store) == [b"value of " + key for key in KEYS]
            fill(store)


def test_a_full_server_refuses_the_whole_transaction(own: RedisServer) -> None:
    with opened(own.address) as store:
        fill(store)
        raw(own).config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="Redis failed"):
            fill(store, b"second ")
        raw(own).config_set("maxmemory", "0")
        assert try_read(store) == [b"value of " + key for key in KEYS]
        fill(store, b"third ")
        assert try_read(store) == [b"third " + key for key in KEYS]


def test_a_server_that_drops_keys_is_refused(own: RedisServer) -> None:
    raw(own).config_set("maxmemory", "100mb")
    raw(own).config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="Redis may drop any key") as caught:
        opened(own.address)
    assert caught.value.next_step == "redis-cli CONFIG SET maxmemory-policy noeviction"


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--cluster-enabled", "yes") as server, pytest.raises(ConfigurationError) as caught:
        opened(server.address)
    assert caught.value.what == "Redis Cluster cannot apply a transaction over several of its parts"


def test_a_wrong_password_is_the_operators_to_mend_and_never_shows(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        for credentials in ("", ":wrong@"):
            with pytest.raises(ConfigurationError, match="Redis refuses this user") as caught:
                opened(f"redis://{credentials}127.0.0.1:{server.port}/0")
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
        with opened(f"redis://:right@127.0.0.1:{server.port}/0") as store:
            fill(store)
            assert try_read(store, KEYS[:1]) == [b"value of " + KEYS[0]]


def test_a_layout_of_another_version_is_refused(redis: RedisServer, url: str, prefix: str) -> None:
    opened(url).close()
    raw(redis).set(f"{prefix}:format", "headrace keyvalue 9")
    with pytest.raises(ConfigurationError, match="written by another version") as caught:
        opened(url)
    assert "headrace keyvalue 9" in str(caught.value)


def test_a_reader_does_not_create_a_store(url: str) -> None:
    with pytest.raises(ConfigurationError, match="there is no key-value store"):
        opened(url, read_only=True)


def test_what_somebody_else_removed_or_replaced_is_damage(redis: RedisServer, url: str, prefix: str) -> None:
    with opened(url) as store:
        fill(store)
        raw(redis).delete(f"{prefix}:v:d:".encode() + KEYS[3])
        with pytest.raises(Corrupt, match="the store is damaged"):
            store.digest()
        raw(redis).set(f"{prefix}:k:d", "no set")
        with pytest.raises(Corrupt):
            fill(store)


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("", "not a redis URL"),
        ("localhost", "not a redis URL"),
        ("//", "not a redis URL"),
        ("//h:99999", "not a redis URL"),
        ("//h/one", "not a number of a Redis database"),
        ("//h?timeout=0ms", "timeout does not fit"),
        ("//h?timeout=soon", "timeout does not fit"),
        ("//h?pool=1", "pool does not fit"),
        ("//h?pool=2&pool=3", "pool is said twice"),
        ("//h?timout=1s", "redis has no setting timout"),
        ("//h?prefix=a:b", "not a prefix"),
    ],
)
def test_a_url_that_does_not_fit_is_refused_before_anything_is_reached(location: str, what: str) -> None:
    with pytest.raises(BadUrl, match=what) as caught:
        opened(f"redis:{location}")
    if "timout" in location:
        assert caught.value.next_step == "did you mean timeout?"


def test_tls_trusts_the_named_authority_only(redis: RedisServer, prefix: str, tmp_path: Path) -> None:
    certificate, key = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    proxy = Proxy(redis.port, tls=context)
    try:
        url = f"rediss://127.0.0.1:{proxy.port}/0?prefix={prefix}&commit=5s"
        with opened(f"{url}&ca={certificate}") as store:
            fill(store)
            assert try_read(store, KEYS[:1]) == [b"value of " + KEYS[0]]
        with pytest.raises(Unavailable, match="Redis cannot be reached"):
            opened(url)
    finally:
        proxy.close()


def certify(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for the loopback address that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    basic = x509.BasicConstraints(ca=True, path_length=None)
    signed = builder.add_extension(names, critical=False).add_extension(basic, critical=True).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"
