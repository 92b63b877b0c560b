"""Open the notebook's door: definitions that can be looked at, beside the pipelines that run them."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.core.expressions import Column
from headrace.core.location import user_location
from headrace.core.time import Clock, Instant, SystemClock
from headrace.features import dataset, definition
from headrace.features.aggregates import latest
from headrace.features.definition import FeatureLike
from headrace.sources.definition import Source, definition_of

if TYPE_CHECKING:
    from headrace.features.frame import FeatureFrame, RowExplanation


class Dataset(dataset.Dataset):
    """Describe training rows and requests alike: one row per prediction, holding only what was known at its moment.

    `rows` is the source that has a row for each prediction, `at` the moment of the prediction, `features` what is known
    then, `label` what is to be predicted, and `mature` how long a label may take: only rows whose `at + mature` has
    passed are trained on.

    Raises:
        DefinitionError: a label, moment or duration that is none (where features leak is found by `headrace plan`).
    """

    def frame(
        self,
        *,
        limit: int | None = None,
        as_of: str | None = None,
        env: str | None = None,
        clock: Clock | None = None,
    ) -> FeatureFrame:
        """Return the matured rows with features and labels, as a training at `as_of` would see them.

        The sources are read from where `headrace.toml` beside the project file says they lie, and bad rows are left out
        as the gate would; nothing is written. `limit` keeps the newest rows. Without `as_of` (ISO 8601) every row is
        taken as matured whose label could have come by the newest arrival.

            >>> from flights import dataset                        # doctest: +SKIP
            >>> dataset.frame(limit=1_000).to_pandas()             # doctest: +SKIP

        Raises:
            ConfigurationError: settings do not say where the rows lie.
            DataError: the rows cannot be read, or a check stops them.
            LeakageError: a feature may become known after the prediction.
        """
        from headrace.features.retrieval import dataset_rows

        moment = None if as_of is None else int(Instant.parse(as_of))
        return dataset_rows(self, clock=clock or SystemClock(), as_of=moment, limit=limit, env=env).frame()

    def explain(
        self,
        row: Mapping[str, Any] | Sequence[Any] | str | int,
        feature: str | None = None,
        *,
        at: str | None = None,
        env: str | None = None,
    ) -> RowExplanation:
        """Return for a row's features which events were used, which were refused, and why; print it to read it.

        `row` is a row's id (a tuple where the id has parts), or the row itself as a request would bring it. `at` is
        another moment than the row's own.

        Raises:
            UsageError: there is no such row, or it does not tell its moment.
            UnknownColumn: there is no such feature.
        """
        from headrace.features.retrieval import explain_dataset_row

        moment = None if at is None else int(Instant.parse(at))
        return explain_dataset_row(self, row, feature, at=moment, env=env)


class FeatureGroup(definition.FeatureGroup, abstract=True):
    """Collect features of one source and entity; subclass it with `of=` and `entity=`.

    class Origin(hr.FeatureGroup, of=Flights, entity=Flights.origin):
        dep_delay = hr.mean(Flights.dep_delay).over("1h", "24h")
    """

    if TYPE_CHECKING:

        def __init_subclass__(cls, *, of: type[Source], entity: Column[Any] | tuple[Column[Any], ...]) -> None: ...

    @classmethod
    def online(
        cls,
        keys: Sequence[Any],
        *,
        at: str | None = None,
        state: str | Path | None = None,
        env: str | None = None,
        clock: Clock | None = None,
    ) -> FeatureFrame:
        """Return what the online store holds for some keys (tuples where the entity has parts), all at one moment.

        `state` is the state folder, by default the one that settings name. Without `at` (ISO 8601) the moment is now.

        Raises:
            ConfigurationError: there is no state folder.
            UsageError: a key has another number of parts.
            DataError: `at` is older than the newest arrival that was applied.
        """
        from headrace.features.retrieval import online_values

        moment = None if at is None else int(Instant.parse(at))
        return online_values(cls, keys, at=moment, state=state, env=env, clock=clock or SystemClock())

    @classmethod
    def test(cls, events: Sequence[Mapping[str, Any]], *, at: str, key: Any = None) -> dict[str, Any]:
        """Return the features at a moment (ISO 8601) from a few invented events: a feature's unit test.

        An event is a row of the source with any of its columns, instants as ISO 8601 text; `_arrival` says when it
        arrived, else each value arrives at its own moment. `key` names the entity where the events are of several. Both
        the offline and the online path compute the answer, and must agree bit for bit.

        Raises:
            UsageError: an event is no row of the source, or the key is not clear.
        """
        from headrace.features.retrieval import tested

        return tested(cls, events, at=int(Instant.parse(at)), key=key, location=user_location())


def precomputed(
    source: type[Source], *, entity: Column[Any] | tuple[Column[Any], ...], max_age: str | None = None
) -> type[FeatureGroup]:
    """Take a table's columns as features that are ready: made by dbt, Spark or anything else, one row for each change.

    The source says when each value was known, as any source; a feature is the newest value known at the prediction's
    moment, null once it is older than `max_age`. The group has the source's name and a feature for each plain column.

        Scores = hr.precomputed(CustomerScores, entity=CustomerScores.customer, max_age="7d")

    Raises:
        DefinitionError: the table has no plain column, or `entity` is none of its columns.
    """
    definition_of_source, key = definition_of(source), entity if isinstance(entity, tuple) else (entity,)
    chosen = [c for c in definition_of_source.columns if c.role == "column" and c not in set(key)]
    body = {c.name: latest(c, max_age=max_age) for c in chosen}
    group = types.new_class(
        source.__name__, (FeatureGroup,), {"of": source, "entity": key}, lambda scope: scope.update(body)
    )
    group.__module__ = source.__module__
    return group


def training_set(
    rows: Any,
    features: Sequence[FeatureLike],
    *,
    at: str = "at",
    folder: str | Path | None = None,
    env: str | None = None,
) -> FeatureFrame:
    """Return exactly the caller's rows, in their order, with features as they were known at each row's moment.

    `rows` is a table of any library that speaks Arrow (pandas, polars, Arrow, DuckDB) with the columns that the features
    read under their own names, and the moments, with a zone, in the column `at`. Where the sources lie is read from
    `headrace.toml` in `folder`, by default beside the file that defines the features' source.

    Raises:
        UsageError: the rows lack a column that the features read, or their moment.
        DataError: a column is of another type, a moment is null or without a zone, or the sources cannot be read.
    """
    from headrace.features.retrieval import rows_with_features

    home = None if folder is None else Path(folder)
    return rows_with_features(rows, features, at=at, location=user_location(), folder=home, env=env)
