"""A URL finds its backend, imports no other, and says what is missing."""

import subprocess
import sys
from typing import Any

import pytest

from headrace.core.errors import BadUrl, MissingExtra
from headrace.storage.backends import EMBEDDED, resolve, schemes

SHAPES: list[Any] = list(EMBEDDED)


@pytest.mark.parametrize(("shape", "scheme"), [(shape, scheme) for shape in SHAPES for scheme in EMBEDDED[shape]])
def test_every_embedded_backend_is_found(shape: Any, scheme: str) -> None:
    factory, location = resolve(shape, f"{scheme}:some/place:with colon")
    assert f"{factory.__module__}:{factory.__name__}" == EMBEDDED[shape][scheme]
    assert location == "some/place:with colon"
    assert scheme in schemes(shape)


@pytest.mark.parametrize("url", ["", "state", "/abs/path", ":x", "1a:x", "UP:x", "lmdb:a\0b"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(BadUrl, match="not a keyvalue URL") as caught:
        resolve("keyvalue", url)
    assert caught.value.next_step == "write it as lmdb:PATH"


def test_a_typo_is_named() -> None:
    with pytest.raises(BadUrl) as caught:
        resolve("ledger", "sqllite:x")
    assert str(caught.value) == (
        "no ledger backend is called sqllite\n"
        "  where:    [stores]\n"
        "  got:      sqllite:\n"
        "  expected: postgres, postgresql, sqlite\n"
        "  next:     did you mean sqlite?"
    )


@pytest.mark.parametrize(
    ("shape", "url", "extra"),
    [
        ("ledger", "postgresql://u:secret@h/db", "postgres"),
        ("blobs", "s3://bucket", "s3"),
    ],
)
def test_a_missing_extra_says_how_to_install_it_and_keeps_secrets(shape: Any, url: str, extra: str) -> None:
    with pytest.raises(MissingExtra) as caught:
        resolve(shape, url)
    assert caught.value.next_step == f'pip install "headrace[{extra}]"'
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "extra", "library"),
    [
        ("redis://u:secret@h", "redis", "redis"),
        ("rediss://u:secret@h", "redis", "redis"),
        ("dynamodb:table", "dynamodb", "boto3"),
    ],
)
def test_a_missing_library_says_how_to_install_it(url: str, extra: str, library: str) -> None:
    probe = f"""
import sys
sys.modules[{library!r}] = None
from headrace.core.errors import MissingExtra
from headrace.storage.keyvalue import open_keyvalue
try:
    open_keyvalue({url!r}, databases=["state"])
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f'  next:     pip install "headrace[{extra}]"'
    assert "secret" not in done.stdout


@pytest.mark.parametrize(("url", "library"), [("kafka://h:1", "confluent_kafka"), ("redis://:secret@h/0", "redis")])
def test_a_backend_of_ours_without_its_library_says_so_too(
    url: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = url.partition(":")[0]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"headrace.storage.streams.{extra}", raising=False)
    with pytest.raises(MissingExtra) as caught:
        resolve("streams", url)
    assert caught.value.next_step == f'pip install "headrace[{extra}]"'
    assert "secret" not in str(caught.value)


HEAVY = ("redis", "boto3", "confluent_kafka", "sqlalchemy", "alembic", "lmdb", "deltalake", "pyarrow", "numpy")


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import headrace.storage.ledger, headrace.storage.keyvalue, headrace.storage.blobs", ()),
        ("import headrace.storage.tables, headrace.storage.streams, headrace.storage.state", ()),
        ("from headrace.storage.backends import resolve; resolve('ledger', 'sqlite:x')", ("sqlalchemy",)),
        ("from headrace.storage.backends import resolve; resolve('keyvalue', 'lmdb:x')", ("lmdb",)),
        ("from headrace.storage.backends import resolve; resolve('keyvalue', 'memory:')", ()),
        ("from headrace.storage.backends import resolve; resolve('streams', 'log:x')", ()),
        ("from headrace.storage.backends import resolve; resolve('blobs', 'file:x')", ()),
    ],
)
def test_using_one_backend_imports_no_other(code: str, allowed: tuple[str, ...]) -> None:
    probe = f"{code}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(allowed)
