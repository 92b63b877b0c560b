"""Keep the catalogue of features: what each is, whose it is, who uses it, and how well it is filled."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.expressions import Column
from headrace.core.time import SystemClock, format_duration
from headrace.features.aggregates import FOR_EVER, Feature
from headrace.features.definition import FeatureGroup
from headrace.features.lane_plan import GroupPlan, LanePlan, plan_group
from headrace.features.plan import DatasetPlan
from headrace.features.windows import Output
from headrace.pipelines.graph import columns_of_output, columns_read
from headrace.pipelines.health import Health, measure_health
from headrace.pipelines.project import Project
from headrace.pipelines.stores import open_stores, state_path
from headrace.pipelines.view import Table, View
from headrace.registry.record import Version
from headrace.registry.run import Registry
from headrace.sources.definition import SourceDefinition
from headrace.storage.state import PASSPORT

_ROLE = re.compile(r"^(\w+)@[^.]*\.")


@dataclass(frozen=True)
class CatalogueEntry:
    """Describe a feature.

    `feature` is its name in its group (`Sky.now[temp]`), `columns` its names in the dataset, where it may stand in several
    roles; none if the dataset does not use it. `version` names its group's definition. `reads` are the columns that its
    value follows from, `known_at` the moment from which it may be used, `models` the registered versions that read it, with
    their stages.
    """

    feature: str
    type: str
    computed: str
    group: str
    version: str
    source: str
    entity: tuple[str, ...]
    window: str | None
    known_at: str
    reads: tuple[str, ...]
    description: str
    owner: str
    tags: tuple[str, ...]
    columns: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    health: Health | None = None

    def matches(self, words: Sequence[str]) -> bool:
        """Tell whether every word, in lower case, stands somewhere in what people would look for."""
        told = [self.feature, self.computed, self.source, *self.entity, *self.reads, self.description, self.owner]
        text = " ".join([*told, *self.tags, *self.columns, *self.models]).lower()
        return all(word in text for word in words)


@dataclass(frozen=True)
class Said:
    """Hold what a group or source class says about itself beside its definition: `owner = "…"`, `tags = ("…", …)`."""

    owner: str = ""
    tags: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Uses:
    """Hold who uses features beyond the project's own dataset: the registered versions, the newest first."""

    versions: Sequence[Version] = field(default_factory=tuple)

    def of_feature(self, feature: str) -> tuple[str, ...]:
        """Return the versions that read a feature, in whatever role, with their stages."""
        return tuple(staged(v) for v in self.versions if feature in {base_name(name) for name in reads_of(v)})

    def of_column(self, column: str) -> tuple[str, ...]:
        """Return the versions of which a feature or the label follows from a column, with their stages."""
        return tuple(staged(v) for v in self.versions if any(column in columns for columns in reads_of(v).values()))


def reads_of(version: Version) -> Mapping[str, Sequence[str]]:
    """Return the columns that each feature of a version, and its label, followed from when it was trained."""
    found: Mapping[str, Sequence[str]] = version.data.get("reads", {})
    return found


def staged(version: Version) -> str:
    """Return a version's name with its stage."""
    return f"{version.name} ({version.stage})"


def base_name(feature: str) -> str:
    """Return a feature's name in its group, without the role in which a dataset reads it.

    >>> base_name("Sky@origin.now[temp]")
    'Sky.now[temp]'
    """
    return _ROLE.sub(r"\1.", feature)


def said(definition: type) -> Said:
    """Return what a group or source class says about itself.

    Raises:
        DefinitionError: owner or tags are of another kind.
    """
    owner, tags = definition.__dict__.get("owner", ""), definition.__dict__.get("tags", ())
    # A group may have a feature, a source a column of that name: then it says nothing about whose it is.
    owner, tags = ("" if isinstance(owner, (Column, Feature)) else owner), (() if isinstance(tags, Column) else tags)
    tags = () if isinstance(tags, Feature) else tags
    if not isinstance(owner, str) or isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
        raise DefinitionError(
            f"{definition.__name__}: an owner is a text, tags are texts",
            where=definition.__dict__["__definition__"].location,
            got={"owner": owner, "tags": tags},
            expected='owner = "team", tags = ("a", "b")',
        )
    return Said(owner, tuple(tags), (definition.__dict__.get("__doc__") or "").strip())


def all_groups(project: Project) -> list[type[FeatureGroup]]:
    """Return the feature groups of the dataset, and those that the project's files define beside it."""
    found = {g.definition.features[0].group: None for g in project.plan.groups}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).resolve().parent == project.folder:
            groups = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, FeatureGroup)]
            found.update({g: None for g in groups if "__definition__" in g.__dict__})
    latest = {g.__name__: g for g in found if g is not None}  # of a file that was loaded twice the newest holds
    latest.update({g.definition.name: g.definition.features[0].group for g in project.plan.groups})  # type: ignore[misc]
    return list(latest.values())


def catalogue(project: Project, uses: Uses) -> list[CatalogueEntry]:
    """Return every feature of the project, in the order of its groups, then the dataset's own columns and functions."""
    planned = {group.definition.name: group for group in project.plan.groups}
    roles = _roles(project.plan)
    found = []
    for group in all_groups(project):
        plan = planned.get(group.__name__) or plan_group(group)
        found += [_entry(group, plan, lane, i, roles, uses) for lane in plan.lanes for i in range(len(lane.outputs))]
    return [*found, *_direct(project.plan, uses)]


def _roles(plan: DatasetPlan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in plan.columns:
        found.setdefault(base_name(column.name), []).append(column.name)
    return found


def _entry(
    group: type[FeatureGroup], plan: GroupPlan, lane: LanePlan, i: int, roles: Mapping[str, list[str]], uses: Uses
) -> CatalogueEntry:
    output, column = lane.outputs[i], lane.columns[i]
    about, source = said(group), said(plan.definition.source)
    return CatalogueEntry(
        feature=column.name,
        type=column.dtype,
        computed=_computed(lane, i),
        group=plan.definition.name,
        version=plan.hash[:12],
        source=lane.source.name,
        entity=tuple(map(str, plan.definition.entity)),
        window=_window(output),
        known_at=str(lane.moment),
        reads=tuple(sorted({str(c) for c in columns_of_output(lane, i)})),
        description=plan.definition.description,
        owner=about.owner or source.owner,
        tags=tuple(dict.fromkeys([*about.tags, *source.tags])),
        columns=tuple(roles.get(column.name, ())),
        models=uses.of_feature(column.name),
    )


def _computed(lane: LanePlan, i: int) -> str:
    """Return in words what an output is computed from, and where its values stand if not at their moment."""
    aggregate, output = lane.features[i][0].aggregate, lane.outputs[i]
    kind = aggregate.kind if aggregate.fold is None else aggregate.fold.function.__name__
    value = "rows" if output.column is None else str(lane.values[output.column])
    where = "" if lane.where is None else f" where {lane.where}"
    placed = "" if lane.on is None else f" on {lane.on}"
    return f"{kind} of {value}{where}{placed}" + ("" if lane.zone is None else f" in {lane.zone}")


def _window(output: Output) -> str | None:
    """Return an output's window in words, None for newest values.

    >>> _window(Output(0, "sum", 7 * 86_400_000_000, None, offset=86_400_000_000))
    '7d, 1d back'
    """
    if output.window is None:
        return None
    length = "lifetime" if output.window >= FOR_EVER else format_duration(output.window)
    ahead = -(output.offset + output.window)
    shift = "" if output.offset == 0 else f", {format_duration(output.offset)} back"
    if output.offset < 0:
        shift = " ahead" + (f", from {format_duration(ahead)} on" if ahead else "")
    return length + shift + (f", in steps of {format_duration(output.hop)}" if output.hop else "")


def _direct(plan: DatasetPlan, uses: Uses) -> Iterator[CatalogueEntry]:
    """Yield the dataset's columns of the rows themselves and its functions."""
    reads, about = columns_read(plan), _said_of(plan.rows)
    owned = {"group": "", "version": plan.hash[:12], "source": plan.rows.name, "entity": (), "window": None}
    for place, column in plan.row_columns:
        name = plan.columns[place].name
        yield CatalogueEntry(
            feature=name,
            type=column.dtype,
            computed="the row's own column",
            known_at=str(plan.rows.moments[column]),
            reads=tuple(reads[name]),
            description=column.description or "",
            owner=about.owner,
            tags=about.tags,
            columns=(name,),
            models=uses.of_feature(name),
            **owned,  # type: ignore[arg-type]
        )
    for function in plan.functions:
        name = function.function.name
        arguments = ", ".join(map(str, function.function.bound.values()))
        yield CatalogueEntry(
            feature=name,
            type=function.function.dtype,
            computed=f"{name}({arguments})",
            known_at="the request",
            reads=tuple(reads[name]),
            description=(function.function.function.__doc__ or "").strip(),
            owner=about.owner,
            tags=about.tags,
            columns=(name,),
            models=uses.of_feature(name),
            **owned,  # type: ignore[arg-type]
        )


def uses_of(project: Project, state: str | None) -> Uses:
    """Return who uses the project's features, nobody where there is no state folder yet."""
    if not (state_path(project, state) / PASSPORT).is_file():
        return Uses()
    with open_stores(project, state, clock=SystemClock(), write=False) as stores:
        return Uses(Registry(stores.ledger, stores.blobs, project.name).versions()[::-1])


def list_features(project: Project, search: str, *, state: str | None, health: bool = False) -> View:
    """Return the features in whose name, owner, description, tags, columns or users all of the given words stand.

    Raises:
        ConfigurationError: health is asked for and there is no state folder.
    """
    entries = [e for e in catalogue(project, uses_of(project, state)) if e.matches(search.lower().split())]
    found = [_plain(entry, project) for entry in entries]
    data: dict[str, Any] = {"features": found, "sources": [_source(s) for s in project.plan.sources]}
    tables = [_table(entries)]
    if health:
        measured = measure_health(project, state=state, clock=SystemClock())
        for entry in found:
            entry["health"] = [asdict(measured.features[c]) for c in entry["columns"] if c in measured.features]
        data["freshness"] = [asdict(one) for one in measured.sources]
        tables += measured.tables({name for entry in entries for name in entry.columns})
    note = (
        f"Next: headrace lineage {project.typed} {entries[0].feature}"
        if entries
        else "Nothing matches; try fewer words."
    )
    return View(f"Features of {project.name}", data, tables, (note,))


def _plain(entry: CatalogueEntry, project: Project) -> dict[str, Any]:
    """Return an entry as plain JSON, with the names that `plan` and `explain` use too."""
    datasets = [dataset_name(project)] if entry.columns else []
    body = {k: v for k, v in asdict(entry).items() if k != "health"}
    return body | {"from": entry.computed, "by": ", ".join(entry.entity), "datasets": datasets}


def _said_of(source: SourceDefinition) -> Said:
    owner = source.columns[0].owner
    return Said() if owner is None else said(owner)


def _source(source: SourceDefinition) -> dict[str, Any]:
    return {"source": source.name, "version": source.hash[:12], **asdict(_said_of(source))}


def _table(entries: Sequence[CatalogueEntry]) -> Table:
    names = ["feature", "type", "computed from", "by", "known at", "owner, tags", "used by"]
    rows = []
    for e in entries:
        used = [*(["the dataset"] if e.columns else []), *e.models]
        owned = ", ".join([*([e.owner] if e.owner else []), *(f"#{tag}" for tag in e.tags)])
        rows.append(
            [e.feature, e.type, e.computed, ", ".join(e.entity), e.known_at, owned, ", ".join(used) or "nobody"]
        )
    return Table("Features", names, rows)


def dataset_name(project: Project) -> str:
    """Return the name under which a project's file knows the dataset."""
    wanted = project.plan.dataset
    modules = [m for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    near = [m for m in modules if Path(str(m.__file__)).resolve().parent == project.folder]
    names = [name for module in near for name, value in vars(module).items() if value is wanted]
    return f"{project.name}.{names[0] if names else 'dataset'}"
