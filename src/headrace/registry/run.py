"""Keep versions of a pipeline's model: register, promote, roll back, archive; every move is a ledger record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.errors import DataError, Refused, did_you_mean
from headrace.evaluation.record import KIND as GATES
from headrace.evaluation.record import Evaluation
from headrace.models.record import Manifest
from headrace.models.servable import Servable
from headrace.models.verify import LoadLimits, check_files, load, save
from headrace.registry.plan import check_promotion, next_name, rollback_target
from headrace.registry.record import (
    ARCHIVE,
    CHALLENGER,
    PROMOTION,
    ROLLBACK,
    VERSION,
    Stage,
    Version,
    challenger_of,
    champion_of,
    newest_of,
    stage_of,
)
from headrace.storage.blobs.protocol import Blobs
from headrace.storage.ledger.protocol import Entry, Ledger, Record
from headrace.training.record import RunRecord

PAGE = 1_000
PRESENT = "(present)"
MOVES = (VERSION, GATES, PROMOTION, ROLLBACK, CHALLENGER, ARCHIVE)
Pointers = dict[str, str | None]


class Registry:
    """Know the versions of one pipeline.

    All state is the ledger's: records say what happened, pointers what holds now. A move compares the pointers that it
    was decided on and sets them in one transaction, so of racing moves exactly one wins and the others get Conflict.
    """

    def __init__(self, ledger: Ledger, blobs: Blobs, pipeline: str) -> None:
        self.ledger, self.blobs, self.pipeline = ledger, blobs, pipeline

    def register(
        self, servable: Servable, run: RunRecord, evaluation: Evaluation | None = None, *, actor: str = "headrace"
    ) -> Version:
        """Keep a servable's files and enter it as the next version; the same files are entered once.

        Raises:
            Corrupt: the files are not those of the manifest.
            Conflict: another version was registered at the same moment; nothing was entered.
        """
        digest = save(self.blobs, servable)
        known = next((v for v in self.versions() if v.manifest == digest), None)
        if known is not None:
            return known
        newest = self._pointers().get(newest_of(self.pipeline))
        name = next_name(self.pipeline, newest)
        body = {
            "pipeline": self.pipeline,
            "manifest": digest,
            "run": run.id,
            "metrics": {part: dict(values) for part, values in run.metrics.items()},
            "size": servable.size,
            "data": dict(run.data),
        }
        entries = [Entry(VERSION, name, body, actor)]
        if evaluation is not None:
            entries.append(evaluation.entry(name))
        pointer = newest_of(self.pipeline)
        self.ledger.append(entries, pointers={pointer: name}, expect={pointer: newest})
        return self.version(name)

    def evaluated(self, version: str, evaluation: Evaluation) -> None:
        """Enter a gate decision about a registered version; the newest one counts."""
        self.ledger.append([evaluation.entry(self.version(version).name)])

    def versions(self) -> list[Version]:
        """Return all versions, the oldest first."""
        stages = self._pointers()
        return [self._version(record, stages) for record in self._records([VERSION])]

    def version(self, name: str) -> Version:
        """Return a version by its name, `PIPELINE/vN` or `vN`.

        Raises:
            DataError: there is none of that name.
        """
        full = name if "/" in name else f"{self.pipeline}/{name}"
        found = self.ledger.read(kinds=[VERSION], subject=full, limit=1)
        if not found or found[0].body["pipeline"] != self.pipeline:
            names = [version.name for version in self.versions()]
            raise DataError(
                "no such version",
                where=f"registry of {self.pipeline}",
                got=name,
                next_step=did_you_mean(full, names) or "headrace run",
            )
        return self._version(found[0], self._pointers())

    def champion(self) -> Version | None:
        """Return the version that serves, if any."""
        return self._pointed(champion_of(self.pipeline))

    def challenger(self) -> Version | None:
        """Return the version that is being rolled out, if any."""
        return self._pointed(challenger_of(self.pipeline))

    def gates(self, version: str) -> Evaluation | None:
        """Return the newest gate decision about a version, if any."""
        found = self.ledger.read(kinds=[GATES], subject=version, limit=1, newest_first=True)
        return Evaluation.from_json({k: v for k, v in found[0].body.items() if k != "passed"}) if found else None

    def servable(self, version: str, *, limits: LoadLimits | None = None, trial: bool = True) -> Servable:
        """Load a version, verified and tried (see `headrace.models.verify.load`)."""
        return load(self.blobs, self.version(version).manifest, limits=limits, trial=trial)

    def challenge(
        self, version: str | None, *, why: str, actor: str, evidence: Mapping[str, Any] | None = None
    ) -> None:
        """Make a version the challenger, or with None end the challenge.

        Raises:
            Refused: the version is archived or the champion, or there is no challenge to end.
            Conflict: champion or challenger changed at the same moment.
        """
        held = self._pointers()
        pointer, before = challenger_of(self.pipeline), held.get(challenger_of(self.pipeline))
        subject = before if version is None else self.version(version).name
        if subject is None:
            raise Refused("there is no challenger", where=self.pipeline, next_step="headrace run")
        pointers: Pointers = {pointer: None if version is None else subject}
        if version is not None:
            self._refuse_unless_promotable(self.version(version), held)
            pointers[stage_of(subject)] = "staging"
        body = {"challenger": version and subject, "replaced": before, "why": why, "evidence": dict(evidence or {})}
        self._move(Entry(CHALLENGER, subject, body, actor), pointers, held)

    def promote(
        self,
        version: str,
        *,
        why: str,
        actor: str,
        evidence: Mapping[str, Any] | None = None,
        over: str | None = PRESENT,
        force: bool = False,
    ) -> Record:
        """Make a version the champion.

        `over` names the champion that this was decided against (None: there was none); the present one unless told.

        Raises:
            GateRefused: its gates failed or were not evaluated, and `force` is not set.
            Refused: the version is archived or the champion, or there is no reason.
            Conflict: the champion is another one by now.
            Corrupt: the version's files are damaged.
        """
        chosen, held = self.version(version), self._pointers()
        champion, challenger = champion_of(self.pipeline), challenger_of(self.pipeline)
        gates = self.gates(chosen.name)
        check_promotion(chosen, held.get(champion), gates, force=force, why=why)
        self._refuse_damaged(chosen)
        if over != PRESENT:
            held[champion] = over
        pointers = self._crowned(chosen.name, held)
        if held.get(challenger) == chosen.name:
            pointers[challenger] = None
        body: dict[str, Any] = {
            "replaced": held.get(champion),
            "why": why,
            "evidence": dict(evidence or {}),
            "forced": force,
        }
        if force and gates is not None:
            body["failed_gates"] = [gate.gate for gate in gates.failed]
        return self._move(Entry(PROMOTION, chosen.name, body, actor), pointers, held)

    def rollback(self, to: str | None = None, *, why: str, actor: str) -> Record:
        """Make an earlier champion the champion again: `to`, or the one that the present one replaced.

        Raises:
            Refused: there is no earlier champion, or `to` never served.
            Conflict: the champion is another one by now.
            Corrupt: the earlier version's files are damaged.
        """
        held = self._pointers()
        champion = held.get(champion_of(self.pipeline))
        target = self.version(self.rollback_target(to))
        self._refuse_damaged(target)
        body = {"replaced": champion, "why": why}
        return self._move(Entry(ROLLBACK, target.name, body, actor), self._crowned(target.name, held), held)

    def rollback_target(self, to: str | None = None) -> str:
        """Return the version that `rollback` would make the champion.

        Raises:
            Refused: there is no earlier champion, or `to` never served.
        """
        champion = self._pointers().get(champion_of(self.pipeline))
        wanted = None if to is None else self.version(to).name
        return rollback_target(self._records([PROMOTION, ROLLBACK])[::-1], champion, wanted)

    def archive(self, version: str, *, why: str, actor: str) -> Record:
        """Take a version out of use for good.

        Raises:
            Refused: it is the champion or the challenger.
            Conflict: it became one of them at the same moment.
        """
        chosen, held = self.version(version), self._pointers()
        roles = [role for role in (champion_of, challenger_of) if held.get(role(self.pipeline)) == chosen.name]
        if roles:
            raise Refused(
                "a version in use cannot be archived",
                where=chosen.name,
                got=roles[0](self.pipeline),
                next_step="headrace promote another version first",
            )
        return self._move(Entry(ARCHIVE, chosen.name, {"why": why}, actor), {stage_of(chosen.name): "archived"}, held)

    def history(self) -> list[Record]:
        """Return everything that happened to the pipeline's versions, the oldest first."""
        return self._records(MOVES)

    def _move(self, entry: Entry, pointers: Pointers, held: Mapping[str, str | None]) -> Record:
        """Write a record and its pointers, if champion, challenger and the touched pointers are still as read."""
        compared = [champion_of(self.pipeline), challenger_of(self.pipeline), *pointers]
        expect = {pointer: held.get(pointer) for pointer in compared}
        return self.ledger.append([entry], pointers=pointers, expect=expect)[-1]

    def _crowned(self, version: str, held: Mapping[str, str | None]) -> Pointers:
        before = held.get(champion_of(self.pipeline))
        pointers: Pointers = {champion_of(self.pipeline): version, stage_of(version): "production"}
        if before is not None:
            pointers[stage_of(before)] = "staging"
        return pointers

    def _refuse_unless_promotable(self, version: Version, held: Mapping[str, str | None]) -> None:
        if version.stage == "archived" or held.get(champion_of(self.pipeline)) == version.name:
            raise Refused(
                "the version cannot be a challenger",
                where=version.name,
                got=version.stage,
                expected="development or staging",
                next_step="register the model again" if version.stage == "archived" else "choose another version",
            )

    def _refuse_damaged(self, version: Version) -> None:
        manifest = Manifest.from_bytes(self.blobs.get(version.manifest))
        check_files(manifest, {file.path: self.blobs.get(file.sha256) for file in manifest.files})

    def _pointers(self) -> dict[str, str | None]:
        return dict(self.ledger.pointers(f"{self.pipeline}/"))

    def _pointed(self, pointer: str) -> Version | None:
        name = self._pointers().get(pointer)
        return None if name is None else self.version(name)

    def _records(self, kinds: Sequence[str]) -> list[Record]:
        found: list[Record] = []
        while page := self.ledger.read(kinds=kinds, after=found[-1].seq if found else 0, limit=PAGE):
            found += page
        return [record for record in found if record.subject.startswith(f"{self.pipeline}/v")]

    def _version(self, record: Record, pointers: Mapping[str, str | None]) -> Version:
        stages: dict[str | None, Stage] = {"staging": "staging", "production": "production", "archived": "archived"}
        return Version(
            name=record.subject,
            manifest=record.body["manifest"],
            run=record.body["run"],
            stage=stages.get(pointers.get(stage_of(record.subject)), "development"),
            registered=record.at,
            metrics=record.body["metrics"],
            size=record.body["size"],
            data=record.body["data"],
        )
