"""Read `headrace.toml`: where data lies, where state is kept, how much is allowed. Settings say where, code says what.

    [project]
    modules = ["flights"]

    [sources.Flights]
    path = "data/flights.parquet"

    [env.prod.stores]                    # laid over the rest by `--env prod`
    ledger = "postgresql://headrace:${env:LEDGER_PASSWORD}@db/headrace"

`${env:NAME}` in a text is replaced by the environment variable NAME; URLs and channels never show in a repr.
"""

from __future__ import annotations

import codecs
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headrace.core.errors import ConfigurationError, HeadraceError, did_you_mean
from headrace.core.limits import size
from headrace.core.location import shown
from headrace.core.time import DAY, HOUR, duration, zone_of

FILE = "headrace.toml"
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


def _reading(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let pydantic collect our own errors beside its own."""

    def attempt(value: Any) -> Any:
        try:
            return read(value)
        except HeadraceError as error:
            raise ValueError(f"{error.what}; expected {error.expected}") from error

    return attempt


def _duration(value: Any) -> Any:
    return duration(value) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    return size(value) if isinstance(value, str) else value


def _zone(name: str) -> str:
    zone_of(name)
    return name


def _encoding(name: str) -> str:
    try:
        codecs.lookup(name)
    except LookupError:
        raise ValueError("an encoding that Python knows, as utf-8, latin-1 or utf-16") from None
    return name


Duration = Annotated[int, BeforeValidator(_reading(_duration)), Field(ge=0)]
Size = Annotated[int, BeforeValidator(_reading(_size)), Field(gt=0)]
Zone = Annotated[str, AfterValidator(_reading(_zone))]
Encoding = Annotated[str, AfterValidator(_encoding)]


class Table(BaseModel):
    """Refuse keys that nothing reads: a misspelt setting is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProjectSettings(Table):
    """Say what the project consists of."""

    modules: tuple[str, ...] = Field(
        default=(), description="project files, without .py; where there is one, commands need not name it"
    )


class S3Settings(Table):
    """Say how to reach object storage that speaks the S3 API."""

    endpoint: str | None = Field(default=None, description="URL of the service, where it is not Amazon's own")
    region: str | None = Field(default=None, description="the buckets' region")
    access_key: str | None = Field(
        default=None, repr=False, description="without it the machine's own credentials are used"
    )
    secret_key: str | None = Field(default=None, repr=False, description="what belongs to `access_key`")
    session_token: str | None = Field(default=None, repr=False, description="for keys that expire")


class SourceSettings(Table):
    """Say where a source's rows lie and how to read them."""

    path: str | None = Field(
        default=None,
        description="a file, a folder or a glob, from this file's folder or absolute; or `s3://BUCKET/KEY`, `delta:FOLDER`, `delta:s3://BUCKET/KEY`",
    )
    version: int | None = Field(default=None, ge=0, description="the version of a Delta table; the newest unless said")
    database: str | None = Field(
        default=None,
        repr=False,
        description="`duckdb:FILE`, `sqlite:FILE`, `postgresql://…`, any URL of SQLAlchemy, or `adbc:MODULE:URI`",
    )
    table: str | None = Field(default=None, description="a table of the database")
    sql: str | None = Field(
        default=None, description="a query of the database; without one, over this file's other sources"
    )
    function: str | None = Field(
        default=None, description="`MODULE:NAME`, a function in a file beside this one that returns Arrow"
    )
    cursor: str | None = Field(
        default=None, description="a column that only grows; a run reads the rows from its newest value on"
    )
    cursor_overlap: Duration = Field(
        default=0, description="how far before the newest value to begin, for rows that are committed late"
    )
    stream: str | None = Field(default=None, description="the stream of live events; the source's name unless said")
    codec: Literal["json", "avro", "arrow"] = Field(default="json", description="how the stream's events are encoded")
    schemas: str | None = Field(
        default=None, repr=False, description="the Avro schemas: a folder of ID.avsc, or a schema registry's URL"
    )
    lateness: Duration = Field(
        default=0, description="how much older than the newest one an event may be before it counts as late"
    )
    format: Literal["parquet", "csv", "jsonl", "delta"] | None = Field(
        default=None, description="by the file's suffix unless said"
    )
    encoding: Encoding = Field(default="utf-8", description="of CSV and JSON Lines, as Python names it")
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="between the cells of a CSV")
    zone: Zone | None = Field(
        default=None, description="IANA zone of timestamps that carry none; without it they are refused"
    )
    lag: Duration = Field(default=0, description="added to a value's moment when its arrival was not observed")
    arrival: str | None = Field(default=None, description="the data's column of instants at which each row arrived")
    columns: dict[str, str] = Field(default={}, description="declared column = its name in the data")
    nulls: tuple[str, ...] = Field(default=("",), description="unquoted CSV texts that mean null")
    s3: S3Settings | None = Field(default=None, description="for this source alone, in place of `[s3]`")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        """Refuse two places for one source's rows, and parts of a place that do not belong together."""
        given = [n for n in ("path", "database", "function") if getattr(self, n) is not None]
        queries = [n for n in ("table", "sql") if getattr(self, n) is not None]
        if self.sql is not None and self.database is None:
            given.append("sql")
        if len(given) > 1 or len(queries) > 1:
            raise ValueError(f"one place for the rows, not {' and '.join([*given, *queries])}")
        if (self.database is not None) != bool(queries) and self.sql is None:
            raise ValueError("`database` and, to say what to read of it, `table` or `sql`")
        if self.cursor is not None and self.path is not None:
            raise ValueError("`cursor` for a database or a function; new files are found without one")
        return self

    @property
    def located(self) -> bool:
        """Tell whether the rows lie somewhere, beside what a stream may bring."""
        return any(place is not None for place in (self.path, self.database, self.sql, self.function))


class StoreSettings(Table):
    """Say where state is kept; a shape without a URL lives embedded in the state folder."""

    state: str = Field(default=".headrace", description="the state folder, from this file's folder or absolute")
    tables: str | None = Field(
        default=None,
        repr=False,
        description="URL of the tables, as `delta:PATH` or `s3:BUCKET/PREFIX` (reached as `[s3]` says)",
    )
    blobs: str | None = Field(default=None, repr=False, description="URL of the blobs, as file:PATH")
    keyvalue: str | None = Field(
        default=None, repr=False, description="URL of the online state, as lmdb:PATH or redis://HOST:PORT"
    )
    ledger: str | None = Field(default=None, repr=False, description="URL of the ledger, as sqlite:PATH")
    streams: str | None = Field(
        default=None,
        repr=False,
        description="URL of the streams, as log:PATH, kafka://HOST:PORT or redis://HOST:PORT/0",
    )


class LimitSettings(Table):
    """Bound what comes from outside, and how far back checks look."""

    event_bytes: Size = Field(default=2**20, description="one event of a stream; a longer one is refused")
    stream_batch_events: int = Field(default=1_000, gt=0, description="events between two commits of a stream")
    stream_batch_bytes: Size = Field(default=8 * 2**20, description="bytes between two commits of a stream")
    stream_wait: Duration = Field(
        default=10**6 // 4, gt=0, description="how long a new event waits at most before streams are looked at again"
    )
    null_rate_period: Duration = Field(default=30 * DAY, gt=0, description="null rates count rows due in this time")
    json_depth: int = Field(default=64, gt=0, description="nesting of JSON; deeper is refused")
    request_bytes: Size = Field(default=16 * 2**20, description="body of one request")
    header_bytes: Size = Field(default=64 * 2**10, description="headers of one request")
    batch_rows: int = Field(default=4096, gt=0, description="rows of one request")
    delivery_rows: int = Field(
        default=1_000_000, gt=0, description="rows of a source that are checked and stored together; more are parted"
    )
    read_rows: int = Field(default=65_536, gt=0, description="rows of a source that are read at a time")
    read_bytes: Annotated[Size, Field(le=2**30)] = Field(
        default=16 * 2**20, description="bytes of CSV or JSON Lines that are read at a time; a longer row is refused"
    )


class ServingSettings(Table):
    """Say how answers are given and kept."""

    log_sync: Duration = Field(
        default=10**6, description="how often the prediction log is synced to the disk; 0: before each answer"
    )
    store_retry: Duration = Field(
        default=10**6,
        description="how long the online store is left alone after it could not be read; answers degrade at once",
    )
    stale_keys: int = Field(
        default=10_000, gt=0, description='keys whose features are kept for `on_missing="stale"`, of each entity'
    )
    stale_for: Duration = Field(default=HOUR, gt=0, description="how old features may be that stand in")
    window_rows: int = Field(default=100_000, ge=0, description="feature vectors of a day kept for drift monitors")
    verify_period: Duration = Field(
        default=7 * DAY, gt=0, description="how far back served features are compared with history"
    )


class OfflineSettings(Table):
    """Say how long what was can be read again."""

    retention: Duration = Field(
        default=30 * DAY,
        gt=0,
        description="how long old versions of tables are kept, so that training sets can be rebuilt",
    )


class EngineSettings(Table):
    """Say where features of many rows are computed, and in which portions."""

    features: str = Field(default="local:", description="local:, local:processes=N, ray: or spark: with options")
    bucket_rows: int = Field(
        default=2_000_000, gt=0, description="reveals of a source computed at a time; it bounds memory, not the result"
    )
    work: str | None = Field(
        default=None,
        description="a folder for buckets while they are computed, cleared of what killed processes left there; in the state folder unless said",
    )
    retries: int = Field(default=2, ge=0, description="how often a bucket is computed again after its worker died")


class Settings(Table):
    """Hold a project's settings; every value has a default."""

    project: ProjectSettings = ProjectSettings()
    sources: dict[str, SourceSettings] = Field(default={}, description="by the source's class name")
    s3: S3Settings = S3Settings()
    stores: StoreSettings = StoreSettings()
    serving: ServingSettings = ServingSettings()
    engines: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    offline: OfflineSettings = OfflineSettings()
    alerts: dict[str, str] = Field(
        default={}, repr=False, description="channel = URL, as ops = stderr: or ops = file:PATH"
    )

    def source(self, name: str) -> SourceSettings:
        """Return where a source's rows lie.

        Raises:
            ConfigurationError: no `[sources.NAME]`.
        """
        found = self.sources.get(name)
        if found is None:
            hint = did_you_mean(name, self.sources) if self.sources else None
            raise ConfigurationError(
                f"nothing says where the rows of {name} lie",
                where=FILE,
                got=hint or "no [sources]",
                expected=f"[sources.{name}]",
                next_step=f'add to {FILE}: [sources.{name}] path = "data/{name.lower()}.parquet"',
            )
        return found


def load_settings(folder: Path, *, env: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read `headrace.toml` in `folder`, with `[env.NAME]` laid over it; without the file, every default holds.

    `environment` holds the variables for `${env:NAME}`; the process's own by default.

    Raises:
        ConfigurationError: the file does not parse, has an unknown key or a value that does not fit, names a variable
            that is not set, or has no such `env`.
    """
    path = folder / FILE
    document = _parse(path) if path.is_file() else {}
    overlays = document.pop("env", {})
    if not isinstance(overlays, dict) or not all(isinstance(overlay, dict) for overlay in overlays.values()):
        raise ConfigurationError("[env] holds one table for each environment", where=shown(str(path)), got=overlays)
    if env is not None:
        if env not in overlays:
            raise ConfigurationError(
                f"no environment {env}",
                where=shown(str(path)),
                got=env,
                expected=f"[env.{env}]",
                next_step=did_you_mean(env, overlays) or f"add [env.{env}] to {FILE}",
            )
        document = _overlay(document, overlays[env])
    revealed = _reveal(document, os.environ if environment is None else environment, shown(str(path)), "")
    try:
        return Settings.model_validate(revealed)
    except ValidationError as error:
        raise _misfit(error, path) from None  # pydantic's own text would show the values, secrets among them


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(
            "the settings cannot be read", where=shown(str(path)), got=error, expected="TOML in UTF-8"
        ) from error


def _overlay(base: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `upper` in place of its own, table by table."""
    merged = dict(base)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _overlay(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _reveal(value: Any, environment: Mapping[str, str], file: str, key: str) -> Any:
    if isinstance(value, dict):
        return {k: _reveal(v, environment, file, f"{key}.{k}" if key else k) for k, v in value.items()}
    if isinstance(value, list):
        return [_reveal(v, environment, file, key) for v in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in environment:
            raise ConfigurationError(
                f"the environment variable {name} is not set",
                where=f"{file}: {key}",
                got=f"${{env:{name}}}",
                next_step=f"export {name}=…",
            )
    return _VARIABLE.sub(lambda match: environment[match[1]], value)


def _misfit(error: ValidationError, path: Path) -> ConfigurationError:
    """Return the first misfit in our own words; the value is left out, for it may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    keys = [str(part) for part in first["loc"]]
    where = f"{shown(str(path))}: {'.'.join(keys)}"
    more = error.error_count() - 1
    rest = f" (and {more} more)" if more else ""
    if first["type"] != "extra_forbidden":
        return ConfigurationError(
            f"a setting does not fit{rest}", where=where, expected=first["msg"].removeprefix("Value error, ")
        )
    known = _keys_at(keys[:-1])
    return ConfigurationError(
        f"unknown setting {keys[-1]}{rest}", where=where, got=keys[-1], next_step=did_you_mean(keys[-1], known)
    )


def _keys_at(keys: list[str]) -> list[str]:
    """Return the settings that a table may hold, for a did-you-mean."""
    model: Any = Settings
    for key in keys:
        field = model.model_fields.get(key) if isinstance(model, type) and issubclass(model, Table) else None
        annotation = field.annotation if field is not None else get_args(model)[-1]
        model = annotation
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, Table) else []
