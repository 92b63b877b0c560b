"""Declare where rows come from: a source is a class, its columns say type, valid values and when they become known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from headrace.core.errors import DefinitionError, UnknownColumn, did_you_mean
from headrace.core.expressions import Column, Expr, Moment, Shift, columns_of
from headrace.core.identity import content_hash
from headrace.core.location import user_location
from headrace.core.time import duration, zone_of
from headrace.sources.annotations import annotations_of, column_type

MOST_COLUMNS = 10_000
RESERVED = ("_row_id", "_arrival", "_stated", "_content")  # the columns of reveals, see `sources.record`
History = Literal["scd2", "snapshots"]


def column(
    *,
    name: str | None = None,
    ge: float | None = None,
    le: float | None = None,
    matches: str | None = None,
    isin: Iterable[Any] | None = None,
    unit: str | None = None,
    known_at: Expr[Any] | None = None,
    due: Expr[Any] | None = None,
    state: bool = False,
    pii: bool = False,
    allow_nan: bool = False,
    description: str | None = None,
) -> Any:
    """Declare a column; its type comes from the annotation `hr.Column[float | None]`.

    `name` is the column's name in the data where it is no Python name. `ge`, `le`, `matches` and `isin` are checked for
    every value. `known_at` is the moment at which the value is known, `due` the moment by which it should be there
    (null rates count only rows past it). `state=True` marks a value that holds until replaced: it may be used at its
    own moment, and its newest null wins.
    """
    allowed = None if isin is None else tuple(isin)
    return Column(
        role="column",
        known_at=known_at,
        due=due,
        unit=unit,
        description=description,
        ge=ge,
        le=le,
        matches=matches,
        allowed=allowed,
        allow_nan=allow_nan,
        state=state,
        pii=pii,
        renamed=name,
    )


def entity(
    *,
    name: str | None = None,
    matches: str | None = None,
    isin: Iterable[Any] | None = None,
    known_at: Expr[Any] | None = None,
    pii: bool = False,
    description: str | None = None,
) -> Any:
    """Declare a column that names a thing which has features: a carrier, a card, an aircraft.

    `matches` and `isin` are checked for every value.
    """
    allowed = None if isin is None else tuple(isin)
    return Column(
        role="entity",
        matches=matches,
        allowed=allowed,
        known_at=known_at,
        pii=pii,
        renamed=name,
        description=description,
    )


def row_id(*parts: Column[Any], name: str | None = None) -> Any:
    """Declare the column, or with `parts` the columns together, that name a row: all its reveals carry the same id."""
    return Column(role="row_id", parts=parts, renamed=name)


def event_time(*, name: str | None = None, description: str | None = None) -> Any:
    """Declare the instant at which the row's event happens; the default moment of every column."""
    return Column(role="event_time", renamed=name, description=description)


def event_date(
    *, tz: str, known_after: str | None = None, name: str | None = None, description: str | None = None
) -> Any:
    """Declare the local date of the row's event, in an IANA zone.

    A day's values are known `known_after` (a duration) its end, unless the source or a column says another `known_at`.

    Raises:
        DefinitionError: no such zone, or no duration.
    """
    zone_of(tz)
    after = 0 if known_after is None else duration(known_after)
    return Column(role="event_time", renamed=name, description=description, zone=tz, known_after=after)


def valid_from(*, name: str | None = None) -> Any:
    """Declare from when the row of a slowly changing table holds (`history="scd2"`)."""
    return Column(role="event_time", renamed=name)


def valid_to(*, name: str | None = None) -> Any:
    """Declare until when the row of a slowly changing table holds; null while it does."""
    return Column(role="valid_to", renamed=name)


@dataclass(frozen=True, eq=False)
class Query:
    """Hold the SQL text whose rows fill a source, the sources whose tables it reads, and the line that says so."""

    text: str
    tables: tuple[type[Source], ...]
    location: str


@dataclass(frozen=True)
class SourceDefinition:
    """Hold what a source class said, checked; every later stage reads this and not the class."""

    name: str
    columns: tuple[Column[Any], ...]
    id_columns: tuple[Column[Any], ...]
    time: Column[Any]
    default_known_at: Expr[Any]
    checks: Any
    location: str
    history: History | None = None
    held: Any = field(default=None, compare=False, repr=False)  # the rows of an inferred source, see `sources.infer`
    query: Query | None = field(default=None, compare=False, repr=False)  # what its rows come from, see `sources.sql`

    @cached_property
    def index(self) -> dict[Column[Any], int]:
        """Return each column's place in a row."""
        return {column: place for place, column in enumerate(self.columns)}

    @cached_property
    def by_name(self) -> dict[str, Column[Any]]:
        """Return the columns by their Python names."""
        return {column.name: column for column in self.columns}

    @cached_property
    def ends(self) -> Column[Any] | None:
        """Return the column that says until when a row of a slowly changing table holds, if there is one."""
        return next((c for c in self.columns if c.role == "valid_to"), None)

    @cached_property
    def feeds(self) -> tuple[SourceDefinition, ...]:
        """Return the sources whose rows are taken in for this one: itself, or those that its query reads."""
        return (self,) if self.query is None else tuple(definition_of(table) for table in self.query.tables)

    @cached_property
    def moments(self) -> dict[Column[Any], Moment]:
        """Return the moment at which each column's value is known.

        Its own `known_at`, else, for a column named in some `known_at`, its own value moved by the smallest offset it
        is named with (whoever knows the moment knows the column), else the source's `known_at`, else the event time. The
        end of a row of a slowly changing table is known when it comes.
        """
        named: dict[Column[Any], int] = {}
        spoken = [c.known_at for c in self.columns if c.known_at is not None]
        for expr in [*spoken, self.default_known_at]:
            for inner, offset in Moment.of(expr).terms:
                named[inner] = min(offset, named.get(inner, offset))
        found = {}
        for c in self.columns:
            if c.known_at is not None:
                found[c] = Moment.of(c.known_at)
            elif c in named or c.role == "valid_to":
                found[c] = Moment(((c, named.get(c, 0)),))
            else:
                found[c] = Moment.of(self.default_known_at)
        return found

    @cached_property
    def hash(self) -> str:
        """Return the content hash of the source's schema and moments."""
        columns = [describe(c) | {"known": str(self.moments[c])} for c in self.columns]
        return content_hash([self.name, columns, *self._asked])

    @property
    def _asked(self) -> list[Any]:
        return [] if self.query is None else [self.query.text, [feed.hash for feed in self.feeds]]

    def meaning(self, read: Iterable[Expr[Any]]) -> list[Any]:
        """Return what expressions read of the source, for hashes: a column that none reads may come or change."""
        named = {self.time, *(c for expr in read for c in columns_of(expr) if c in self.index)}
        told = named | {c for column in named for c, _ in self.moments[column].terms}
        columns = [describe(c) | {"known": str(self.moments[c])} for c in self.columns if c in told]
        copies = ["snapshots"] if self.history == "snapshots" else []
        return [self.name, [c.name for c in self.id_columns], columns, *self._asked, *copies]

    def find(self, name: str, where: str | None = None) -> Column[Any]:
        """Return a column by name.

        Raises:
            UnknownColumn: there is none.
        """
        if name not in self.by_name:
            raise UnknownColumn(
                f"{self.name} has no column {name}",
                where=where or self.location,
                got=name,
                expected=sorted(self.by_name),
                next_step=did_you_mean(name, self.by_name),
            )
        return self.by_name[name]


def describe(column: Column[Any]) -> dict[str, Any]:
    """Return a column as plain JSON values, for hashes, manifests and pages."""
    fields = {"name": column.name, "type": column.dtype, "nullable": column.nullable, "role": column.role}
    rest = {k: getattr(column, k) for k in ("unit", "ge", "le", "matches", "state", "allow_nan", "pii", "description")}
    rest["isin"] = None if column.allowed is None else list(column.allowed)
    rest |= {"zone": column.zone, "references": None if column.references is None else str(column.references)}
    return fields | {k: v for k, v in rest.items() if v is not None and v is not False}


class SourceMeta(type):
    """Make a misspelt column of a source an error with a suggestion."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            definition = cls.__dict__.get("__definition__")
            known = definition.by_name if definition else ()
            raise UnknownAttribute(
                f"{cls.__name__} has no column {name}",
                where=user_location(),
                got=name,
                next_step=did_you_mean(name, known),
            )


class UnknownAttribute(UnknownColumn, AttributeError):
    """Report a misspelt column; an `AttributeError` too, so that `hasattr` and editors work."""


class Source(metaclass=SourceMeta):
    """Describe a table or stream of rows; subclass it and annotate columns with `hr.Column[type]`.

    >>> class Trips(Source):
    ...     trip: Column[str] = row_id()
    ...     start: Column[Instant] = event_time()
    ...     distance: Column[float] = column(ge=0, unit="km")
    >>> str(definition_of(Trips).moments[Trips.distance])
    'Trips.start'
    """

    __definition__: ClassVar[SourceDefinition]
    known_at: ClassVar[Any] = None
    checks: ClassVar[Any] = None

    def __init_subclass__(cls, *, history: History | None = None, abstract: bool = False) -> None:
        if abstract:
            return
        location = user_location()
        columns, composite = _collect(cls, location)
        time = _only(columns, "event_time", cls, location)
        if history is not None:
            _remember(cls, history, columns, location)
        known = cls.__dict__.get("known_at")
        if known is None and time.zone is not None and time.known_after:
            known = Shift(time, time.known_after)
        ids = composite or _row_id_of(columns, time, cls, location)
        cls.__definition__ = SourceDefinition(
            name=cls.__name__,
            columns=columns,
            id_columns=ids,
            time=time,
            default_known_at=time if known is None else known,
            checks=cls.__dict__.get("checks"),
            location=location,
            history=history,
        )
        _check(cls.__definition__)


def definition_of(source: type[Source]) -> SourceDefinition:
    """Return what a source class said.

    Raises:
        DefinitionError: the value is no source class.
    """
    found = getattr(source, "__definition__", None) if isinstance(source, type) else None
    if not isinstance(found, SourceDefinition):
        raise DefinitionError("not a source", where=user_location(), got=source, expected="a subclass of hr.Source")
    return found


def fill_by_query(source: type[Source], query: Query, known_at: Expr[Any]) -> None:
    """Have a query's rows fill a source, each known at `known_at`; a later query takes an earlier one's place.

    Raises:
        DefinitionError: `known_at` is no instant of the source, or said twice; the query reads no source, or another query.
    """
    definition = definition_of(source)
    if source.__dict__.get("known_at") is not None:
        raise DefinitionError(
            f"{definition.name}: two say when its rows are known",
            where=query.location,
            got=f"known_at= beside the class's own, {source.known_at}",
            expected="known_at= alone",
            next_step=f"remove known_at from class {definition.name}",
        )
    wrong = [table for table in query.tables if table is source or definition_of(table).query is not None]
    if wrong or not query.tables:
        raise DefinitionError(
            f"{definition.name}: a query reads the tables of sources",
            where=query.location,
            got=f"{wrong[0].__name__}, which a query fills" if wrong else "no table",
            expected="tables=[…], sources with rows of their own",
            next_step="put the other query into this one: WITH … AS (SELECT …)" if wrong else "tables=[Orders]",
        )
    filled = replace(definition, default_known_at=known_at, query=query)
    _check(filled)
    source.__definition__ = filled


def source_of(column: Column[Any]) -> SourceDefinition:
    """Return the source that a column belongs to.

    Raises:
        DefinitionError: the column is in no source class.
    """
    if column.owner is None:
        raise DefinitionError("a column outside any source", where=column.location, got=str(column))
    return definition_of(column.owner)


def is_reserved(name: str) -> bool:
    """Tell whether reveals have a column of this name."""
    return name in RESERVED or name.startswith("_stated_")


def _collect(cls: type[Source], location: str) -> tuple[tuple[Column[Any], ...], tuple[Column[Any], ...]]:
    """Name the class's columns and type them from their annotations; return them and a composite row id's parts."""
    hints, columns = annotations_of(cls), []
    composite: tuple[Column[Any], ...] = ()
    for name, value in list(cls.__dict__.items()):
        if not isinstance(value, Column) or value.owner is not None or name == "known_at":
            continue
        if value.parts:
            composite = value.parts
            continue
        if is_reserved(name):
            raise DefinitionError(
                f"{cls.__name__}.{name}: the name is Headrace's own",
                where=value.location,
                got=name,
                expected="another name in Python",
                next_step=f'{name.strip("_")} = hr.column(name="{name}")',
            )
        if name not in hints:
            raise DefinitionError(
                f"{cls.__name__}.{name} has no type", where=value.location, expected=f"{name}: hr.Column[str] = ..."
            )
        value.name, value.owner = name, cls
        value.dtype, value.nullable = column_type(hints[name], f"{cls.__name__}.{name}", value.location)
        columns.append(value)
    for name in hints:
        if name not in cls.__dict__:
            raise DefinitionError(
                f"{cls.__name__}.{name} has a type and no value", where=location, expected=f"{name}: ... = hr.column()"
            )
    return tuple(columns), composite


def _row_id_of(
    columns: tuple[Column[Any], ...], time: Column[Any], cls: type[Source], location: str
) -> tuple[Column[Any], ...]:
    """Return the columns that name a row where no composite id is declared: the row id, else entities and event time."""
    entities = tuple(c for c in columns if c.role == "entity" and not c.nullable)
    if entities and not any(c.role == "row_id" for c in columns):
        return (*entities, time)
    return (_only(columns, "row_id", cls, location),)


def _remember(cls: type[Source], history: str, columns: tuple[Column[Any], ...], location: str) -> None:
    """Make a slowly changing table's columns values that hold until replaced."""
    if history not in ("scd2", "snapshots"):
        raise DefinitionError(
            f"{cls.__name__}: unknown history", where=location, got=history, expected='"scd2" or "snapshots"'
        )
    if (history == "scd2") is not any(c.role == "valid_to" for c in columns):
        raise DefinitionError(
            f"{cls.__name__}: rows that end need a valid_to, others have none",
            where=location,
            got=f'history="{history}", {[c.name for c in columns if c.role == "valid_to"]}',
            expected='history="scd2" with one column = hr.valid_to()',
        )
    own = [c for c in columns if c.known_at is not None]
    if history == "snapshots" and own:
        raise DefinitionError(
            f"{cls.__name__}: all of a snapshot is known at one moment",
            where=own[0].location,
            got=f"{own[0].name} with a known_at= of its own",
            expected="known_at = … of the class, or none",
            next_step='leave history="snapshots" out, and say hr.column(state=True) of what holds until it is replaced',
        )
    for c in columns:
        c.state = c.role in ("column", "entity", "foreign_key")


def _only(columns: tuple[Column[Any], ...], role: str, cls: type[Source], location: str) -> Column[Any]:
    found = [c for c in columns if c.role == role]
    if len(found) == 1:
        return found[0]
    raise DefinitionError(
        f"{cls.__name__} needs exactly one {role} column",
        where=location,
        got=[c.name for c in found] or "none",
        expected=f"one column = hr.{role}()",
        next_step="row_id = hr.row_id(a, b) names several columns" if role == "row_id" else None,
    )


def _check(definition: SourceDefinition) -> None:
    """Refuse moments that name other sources, non-instants or circles, ids that may be null, and too many columns."""
    if len(definition.columns) > MOST_COLUMNS:
        raise DefinitionError(
            f"{definition.name} has more columns than a source can have",
            where=definition.location,
            got=len(definition.columns),
            expected=f"at most {MOST_COLUMNS}; undeclared columns of the data are passed over",
        )
    for c in definition.id_columns:
        if c not in definition.index or c.nullable:
            raise DefinitionError(
                "a row id must be a column of its source and never null", where=c.location, got=str(c)
            )
    spoken = [c.known_at for c in definition.columns] + [c.due for c in definition.columns]
    for expr in [e for e in (*spoken, definition.default_known_at) if e is not None]:
        for inner in columns_of(expr):
            if inner not in definition.index or inner.dtype not in ("instant", "date"):
                raise DefinitionError(
                    f"{definition.name}: not an instant of this source",
                    where=expr.location if not isinstance(expr, Column) else definition.location,
                    got=str(inner),
                    expected=[c.name for c in definition.columns if c.dtype == "instant"],
                )
    if definition.time.nullable or definition.time.dtype not in ("instant", "date"):
        raise DefinitionError(
            "the event time must be an instant and never null", where=definition.time.location, got=str(definition.time)
        )
    for c in definition.columns:
        _refuse_circle(definition, c)


def _refuse_circle(definition: SourceDefinition, column: Column[Any]) -> None:
    seen = {column: column.name}
    current = column
    while (following := definition.moments[current].terms[0][0]) not in seen:
        seen[following] = following.name
        current = following
    if following is not current:
        path = " -> ".join([*seen.values(), following.name])
        raise DefinitionError("known_at goes in a circle", where=column.location, got=path)
