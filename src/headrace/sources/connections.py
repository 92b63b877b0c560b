"""Connect to databases for reading only: DuckDB and SQLite files, SQLAlchemy's and ADBC's drivers, this file's sources."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from headrace.core.errors import BadUrl, ConfigurationError, MissingExtra

Batch = Any  # an Arrow record batch, or a list of rows by column name
_ADBC = re.compile(r"(?P<module>adbc_driver_[a-z0-9_]+):(?P<uri>.+)", re.DOTALL)
EXTRAS = {"psycopg": "postgres", "adbc_driver_manager": "adbc", "adbc_driver_postgresql": "adbc"}


class Connection(Protocol):
    """Run queries that only read; batches come as Arrow, or as rows of plain values where the driver has no Arrow."""

    placeholder: str

    def quoted(self, name: str) -> str:
        """Return a name as the database's SQL writes it."""
        ...

    def header(self, query: str) -> list[str]:
        """Return the names of a query's columns, those that are there twice too."""
        ...

    def batches(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a query's rows, `rows` at a time; `since` fills its placeholders."""
        ...


@contextmanager
def connect(url: str, folder: Path) -> Iterator[Connection]:
    """Open a database by its URL; relative files start from `folder`.

    Raises:
        BadUrl: the text is no such URL.
        MissingExtra: its driver is not installed.
        ConfigurationError: there is no such file.
    """
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise BadUrl("not a database's URL", expected="duckdb:FILE, sqlite:FILE, postgresql://… or adbc:MODULE:URI")
    openers = {"duckdb": _duckdb, "sqlite": _sqlite}
    try:
        if scheme in openers and not rest.startswith("//"):
            with openers[scheme](_file(folder / rest)) as found:
                yield found
        else:
            with _adbc(rest) if scheme == "adbc" else _sqlalchemy(url) as found:
                yield found
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        package = f"headrace[{EXTRAS[name]}]" if name in EXTRAS else name.replace("_", "-")
        raise MissingExtra(
            "the database's driver is not installed",
            got=f"{scheme}: needs {name}",
            next_step=f'pip install "{package}"',
        ) from error


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigurationError(
            "there is no such database", got=path.name, expected="a file", next_step="check the path of `database`"
        )
    return path


class DuckDbConnection:
    """Query a DuckDB; the text can reach nothing outside of it."""

    placeholder = "?"

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        for statement in (
            "SET enable_external_access = false",
            "SET python_enable_replacements = false",
            "SET TimeZone = 'UTC'",
            "SET lock_configuration = true",
        ):
            connection.execute(statement)

    def quoted(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    def header(self, query: str) -> list[str]:
        """Return the names of a query's columns."""
        described = self.connection.execute(f"DESCRIBE {query}").fetchall()
        return [row[0] for row in described]

    def schema(self, query: str) -> Any:
        """Return the Arrow schema of a query's rows."""
        return self.connection.sql(f"SELECT * FROM ({query}\n) headrace_rows LIMIT 0").to_arrow_reader(1).schema

    def batches(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a query's rows as Arrow."""
        yield from self.connection.sql(query, params=list(since) or None).to_arrow_reader(rows)


@contextmanager
def _duckdb(path: Path) -> Iterator[Connection]:
    import duckdb

    with duckdb.connect(str(path), read_only=True) as connection:
        yield DuckDbConnection(connection)


@contextmanager
def over_tables(
    tables: Mapping[str, Any], *, repeatable: bool = False, without: Collection[str] = ()
) -> Iterator[DuckDbConnection]:
    """Query Arrow tables or datasets by their names, in a database of its own that holds nothing else.

    With `repeatable` one thread does all work, so that floats are added up in one order and rows come in one. `without`
    names steps of the optimizer that are left out.
    """
    import duckdb

    config: dict[str, Any] = {"threads": 1} if repeatable else {}
    with duckdb.connect(":memory:", config=config | {"disabled_optimizers": ",".join(sorted(without))}) as connection:
        for name, table in tables.items():
            connection.register(name, table)
        yield DuckDbConnection(connection)


class SqliteConnection:
    """Query a SQLite file."""

    placeholder = "?"

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def quoted(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    def header(self, query: str) -> list[str]:
        """Return the names of a query's columns."""
        with closing(self.connection.execute(query)) as cursor:
            return [column[0] for column in cursor.description]

    def batches(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a query's rows as plain values."""
        with closing(self.connection.execute(query, since)) as cursor:
            names = [column[0] for column in cursor.description]
            while found := cursor.fetchmany(rows):
                yield [dict(zip(names, row, strict=True)) for row in found]


@contextmanager
def _sqlite(path: Path) -> Iterator[Connection]:
    import sqlite3

    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        yield SqliteConnection(connection)


class SqlAlchemyConnection:
    """Query a database through SQLAlchemy, with a cursor that stays on the server where the driver can."""

    placeholder = ":since"

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def quoted(self, name: str) -> str:
        """Return a name as the dialect quotes it."""
        return str(self.connection.dialect.identifier_preparer.quote_identifier(name))

    def header(self, query: str) -> list[str]:
        """Return the names of a query's columns."""
        with self._run(f"SELECT * FROM ({query}\n) headrace_rows WHERE 1 = 0", (), 1) as result:
            return list(result.keys())

    def batches(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a query's rows as plain values."""
        with self._run(query, since, rows) as result:
            names = list(result.keys())
            for part in result.partitions(rows):
                yield [dict(zip(names, row, strict=True)) for row in part]

    @contextmanager
    def _run(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Any]:
        from sqlalchemy import text

        # A colon of the user's own text is no parameter; ours is put back.
        escaped = query.replace(":", r"\:").replace(r"\:since" if since else "\0", ":since")
        statement = text(escaped).execution_options(stream_results=True, max_row_buffer=rows)
        with self.connection.execute(statement, {"since": since[0]} if since else {}) as result:
            yield result


@contextmanager
def _sqlalchemy(url: str) -> Iterator[Connection]:
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError
    from sqlalchemy.pool import NullPool

    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, poolclass=NullPool)
    except (ArgumentError, NoSuchModuleError):
        raise BadUrl(
            "not a database's URL",
            got=url.partition(":")[0] + ":",
            expected="duckdb:FILE, sqlite:FILE, postgresql://…, another URL of SQLAlchemy, or adbc:MODULE:URI",
            next_step="install the dialect's package, or check the URL",
        ) from None
    with engine.connect() as connection:
        options = {"postgresql_readonly": True} if parsed.get_backend_name() == "postgresql" else {}
        yield SqlAlchemyConnection(connection.execution_options(**options))


class AdbcConnection:
    """Query a database through an ADBC driver, which speaks Arrow."""

    def __init__(self, connection: Any, placeholder: str) -> None:
        self.connection, self.placeholder = connection, placeholder

    def quoted(self, name: str) -> str:
        """Return a name in double quotes."""
        return '"' + name.replace('"', '""') + '"'

    def header(self, query: str) -> list[str]:
        """Return the names of a query's columns."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM ({query}\n) AS headrace_rows WHERE 1 = 0")
            return list(cursor.fetch_record_batch().schema.names)

    def batches(self, query: str, since: Sequence[Any], rows: int) -> Iterator[Batch]:
        """Yield a query's rows as Arrow, in batches of the driver's own size."""
        with self.connection.cursor() as cursor:
            cursor.execute(query, list(since) or None)
            for batch in cursor.fetch_record_batch():
                yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


@contextmanager
def _adbc(rest: str) -> Iterator[Connection]:
    match = _ADBC.fullmatch(rest)
    if match is None:
        raise BadUrl(
            "not a URL of ADBC", expected="adbc:MODULE:URI, as adbc:adbc_driver_postgresql:postgresql://HOST/NAME"
        )
    driver = importlib.import_module(f"{match['module']}.dbapi")
    postgres = match["module"] == "adbc_driver_postgresql"
    with driver.connect(match["uri"]) as connection:
        if postgres:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
        yield AdbcConnection(connection, "$1" if postgres else "?")
        with suppress(Exception):
            connection.rollback()
