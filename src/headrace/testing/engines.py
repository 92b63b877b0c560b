"""Check the promises of `headrace.engines.protocol` on any engine."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from headrace.core.errors import DataError, HeadraceError, Unavailable, UserCodeError
from headrace.engines import Engine, Tables, open_engine

RETRIES = 1
PATIENCE = 10.0  # seconds for processes to end
LISTENING = (
    "0A"  # as /proc/net/tcp says it; as it writes 127.0.0.1, the same within IPv6, and ::1, on small-endian machines
)
LOOPBACK = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")


def beyond_loopback() -> list[str]:
    """Return the addresses (hexadecimal) at which this process and all below it listen for others than this machine."""
    parents: dict[int, list[int]] = {}
    sockets: dict[int, set[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(process.name))
            held = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            sockets[int(process.name)] = {name[8:-1] for name in held if name.startswith("socket:[")}
    mine, waiting = set[str](), [os.getpid()]
    while waiting:
        waiting += parents.get(pid := waiting.pop(), [])
        mine |= sockets.get(pid, set())
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == LISTENING and row[9] in mine and not row[1].startswith(LOOPBACK)]


def left_behind() -> set[str]:
    """Return this process's living children (where there is /proc) and its engines' folders for temporary files."""
    found = {entry for entry in os.listdir(tempfile.gettempdir()) if entry.startswith(f"hr-{os.getpid()}-")}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.add(f"process {stat.parent.name}")
    return found


class Numbers(Sequence[Tables]):
    """Hold buckets of one table of one number, and remember which were read."""

    def __init__(self, count: int) -> None:
        self.total = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, place: Any) -> Any:
        self.read.append(place)
        return [pa.table({"n": pa.array([place], pa.int64())})]


def number(tables: Tables) -> int:
    """Return a bucket's number."""
    found: int = tables[0]["n"][0].as_py()
    return found


def numbers(answers: Iterator[Tables]) -> list[int]:
    """Return the numbers of answers."""
    return [number(tables) for tables in answers]


def answer(value: int) -> list[pa.Table]:
    """Return an answer of one number."""
    return [pa.table({"n": pa.array([value], pa.int64())})]


class EngineContract:
    """Check one engine; a subclass names its URL. The engine is opened once for all checks."""

    url: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls) -> Iterator[Engine]:
        """Return the open engine; it retries once. When it is closed, its processes and files must be gone."""
        before = left_behind()
        with open_engine(cls.url, retries=RETRIES) as found:
            yield found
        found.close()
        end = time.monotonic() + PATIENCE
        while left_behind() - before and time.monotonic() < end:
            time.sleep(0.1)
        assert not left_behind() - before

    def test_answers_come_in_the_order_of_buckets(self, engine: Engine) -> None:
        """One for each, and so does the progress, although later buckets are done earlier."""

        def slow_first(tables: Tables) -> Tables:
            time.sleep(0.2 if number(tables) == 0 else 0)
            return answer(number(tables) ** 2)

        told: list[tuple[int, int]] = []
        found = engine.map_buckets(slow_first, Numbers(5), progress=lambda done, total: told.append((done, total)))
        assert numbers(found) == [0, 1, 4, 9, 16]
        assert told == [(done, 5) for done in range(1, 6)]
        assert list(engine.map_buckets(slow_first, [])) == []

    def test_tables_pass_unchanged(self, engine: Engine) -> None:
        """Several of them, with every type that features use, nulls, NaN, -0.0, sliced and empty."""
        table = pa.table(
            {
                "i": pa.array([2**63 - 1, None, -(2**63)], pa.int64()),
                "f": pa.array([float("nan"), -0.0, None], pa.float64()),
                "s": pa.array(["ü", None, ""], pa.string()),
                "b": pa.array([b"\0\xff", b"", None], pa.binary()),
                "t": pa.array([True, None, False], pa.bool_()),
                "d": pa.array(["x", "y", "x"]).dictionary_encode(),
            }
        )
        sent = [table, table.slice(1, 1), table.slice(0, 0)]
        (found,) = engine.map_buckets(lambda tables: tables, [sent])
        assert [t.schema for t in found] == [t.schema for t in sent]
        assert [[str(row) for row in t.to_pylist()] for t in found] == [
            [str(row) for row in t.to_pylist()] for t in sent
        ]

    def test_functions_go_by_value(self, engine: Engine, tmp_path: Path) -> None:
        """With what they close over, and with a project's own module, which workers could not import."""
        path, name, factor = tmp_path / "only_here.py", "only_here", 7
        path.write_text("BASE = 10\n\ndef scaled(n):\n    return n * BASE\n")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
        scaled: Callable[[int], int] = module.scaled
        path.unlink()
        try:
            found = engine.map_buckets(lambda tables: answer(scaled(number(tables)) * factor), Numbers(2))
            assert numbers(found) == [0, 70]
        finally:
            del sys.modules[name]

    def test_where_functions_run(self, engine: Engine) -> None:
        """In another process if the engine says so, else in this one."""
        (found,) = numbers(engine.map_buckets(lambda tables: answer(os.getpid()), Numbers(1)))
        assert (found != os.getpid()) is engine.capabilities.isolated

    def test_what_a_function_raises_comes_back_with_its_cause(self, engine: Engine) -> None:
        """As a UserCodeError that names the bucket; answers before it have come, the engine goes on to serve."""

        def fails(tables: Tables) -> Tables:
            if number(tables) == 2:
                raise KeyError("no such colour")
            return answer(number(tables))

        answers = engine.map_buckets(fails, Numbers(6))
        assert [number(next(answers)), number(next(answers))] == [0, 1]
        with pytest.raises(UserCodeError, match="a function raised KeyError: 'no such colour'") as caught:
            next(answers)
        assert caught.value.where == "bucket 3 of 6"
        assert isinstance(caught.value.__cause__, KeyError)
        assert numbers(engine.map_buckets(answer_of, Numbers(2))) == [0, 1]

    def test_a_function_that_exits_ends_nothing(self, engine: Engine) -> None:
        """It has raised SystemExit, and is told so."""

        def exits(tables: Tables) -> Tables:
            sys.exit(3)

        with pytest.raises(UserCodeError, match="a function raised SystemExit: 3"):
            list(engine.map_buckets(exits, Numbers(1)))
        assert numbers(engine.map_buckets(answer_of, Numbers(1))) == [0]

    def test_nothing_listens_beyond_this_machine(self, engine: Engine) -> None:
        """An engine of this machine opens no port to others."""
        assert numbers(engine.map_buckets(answer_of, Numbers(1))) == [0]
        if Path("/proc/net/tcp").exists() and not engine.capabilities.several_hosts:
            assert beyond_loopback() == []

    def test_errors_of_headrace_stay_what_they_are(self, engine: Engine) -> None:
        """With all their parts and their cause."""

        def fails(tables: Tables) -> Tables:
            try:
                raise ZeroDivisionError("by nothing")
            except ZeroDivisionError as error:
                raise DataError("bad row", where="flights.py:3", got=5, expected="4", next_step="look") from error

        with pytest.raises(DataError) as caught:
            list(engine.map_buckets(fails, Numbers(1)))
        told = {"what": "bad row", "where": "flights.py:3, bucket 1 of 1", "got": "5", "expected": "4", "next": "look"}
        assert caught.value.to_dict() == {"error": "data", **told}
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_too_little_memory_is_no_fault_of_the_function(self, engine: Engine) -> None:
        """It is Unavailable, and smaller buckets are the way out."""

        def fails(tables: Tables) -> Tables:
            raise MemoryError("no room")

        with pytest.raises(Unavailable, match="no memory for a bucket") as caught:
            list(engine.map_buckets(fails, Numbers(1)))
        assert caught.value.next_step == "lower [engines] bucket_rows"

    def test_nothing_that_a_worker_wrote_is_unpickled(self, engine: Engine, tmp_path: Path) -> None:
        """Neither an exception that would run code when it is loaded, nor its arguments."""
        trap = str(tmp_path / "sprung")

        class Trap(Exception):
            def __reduce__(self) -> tuple[Any, ...]:
                return (os.mkdir, (trap,))

        def fails(tables: Tables) -> Tables:
            raise Trap("harmless text")

        with pytest.raises(UserCodeError, match="a function raised Trap: harmless text"):
            list(engine.map_buckets(fails, Numbers(1)))
        assert not os.path.exists(trap)

    def test_what_cannot_be_sent_is_said(self, engine: Engine, tmp_path: Path) -> None:
        """An open file stays where it is: isolated workers cannot have it."""
        with (tmp_path / "file").open("w") as file:

            def holds(tables: Tables) -> Tables:
                file.write("x")
                return answer(1)

            if engine.capabilities.isolated:
                with pytest.raises(UserCodeError, match="cannot be sent") as caught:
                    list(engine.map_buckets(holds, Numbers(1)))
                assert isinstance(caught.value.__cause__, Exception)
            else:
                assert numbers(engine.map_buckets(holds, Numbers(1))) == [1]

    def test_only_so_many_buckets_are_on_their_way(self, engine: Engine) -> None:
        """Memory is bounded: buckets are read as answers are taken, and what is left over is given up."""
        buckets = Numbers(50)
        answers = engine.map_buckets(answer_of, buckets)
        assert number(next(answers)) == 0
        assert len(buckets.read) <= 2 * engine.capabilities.workers + 2
        del answers
        assert numbers(engine.map_buckets(answer_of, Numbers(3))) == [0, 1, 2]

    def test_a_worker_that_dies_once_costs_a_retry(self, engine: Engine, tmp_path: Path) -> None:
        """The bucket is computed again and answered once; an engine that is not isolated has no workers to lose."""
        mark = str(tmp_path / "died")

        def dies_once(tables: Tables) -> Tables:
            if number(tables) == 1 and not os.path.exists(mark):
                os.mkdir(mark)
                os.kill(os.getpid(), signal.SIGKILL)
            return answer(number(tables))

        function = dies_once if engine.capabilities.isolated else answer_of
        assert numbers(engine.map_buckets(function, Numbers(4))) == [0, 1, 2, 3]
        assert os.path.exists(mark) is engine.capabilities.isolated

    def test_a_worker_that_always_dies_ends_in_unavailable(self, engine: Engine) -> None:
        """After as many retries as were allowed; the engine goes on to serve."""

        def dies(tables: Tables) -> Tables:
            if os.getpid() == caller:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGKILL)
            return tables

        caller = os.getpid()
        with pytest.raises(Unavailable) as caught:
            list(engine.map_buckets(dies, Numbers(1)))
        assert caught.value.where == "bucket 1 of 1"
        assert isinstance(caught.value, HeadraceError) and caught.value.retryable
        assert numbers(engine.map_buckets(answer_of, Numbers(1))) == [0]


def answer_of(tables: Tables) -> Tables:
    """Return a bucket's number as its answer."""
    return answer(number(tables))
