"""Decide what the registry may do with a version, from the ledger's records. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core.errors import GateRefused, Refused
from headrace.evaluation.record import Evaluation, refused
from headrace.registry.record import PROMOTION, ROLLBACK, Version
from headrace.storage.ledger.protocol import Record


def next_name(pipeline: str, newest: str | None) -> str:
    """Return the name of the version after `newest`.

    >>> next_name("flights", None), next_name("flights", "flights/v9")
    ('flights/v1', 'flights/v10')
    """
    number = 0 if newest is None else int(newest.rsplit("/v", 1)[1])
    return f"{pipeline}/v{number + 1}"


def check_promotion(version: Version, champion: str | None, gates: Evaluation | None, *, force: bool, why: str) -> None:
    """Refuse a promotion that the policy does not allow; `force` with a reason overrules the gates alone.

    Raises:
        Refused: the version is archived or serves already, or `why` is missing.
        GateRefused: its gates failed, or none were evaluated.
    """
    if not why.strip():
        raise Refused(
            "a promotion needs a reason",
            where=version.name,
            expected="why=…",
            next_step=f"headrace promote {version.name} --why REASON",
        )
    if version.stage == "archived":
        raise Refused("the version is archived", where=version.name, next_step="register the model again")
    if version.name == champion:
        raise Refused("the version is the champion already", where=version.name, got=champion)
    if force:
        return
    if gates is None:
        raise GateRefused(
            f"version {version.name} was not evaluated",
            where=version.name,
            got="no gate decision",
            expected="every gate passed",
            next_step=f"headrace run, or headrace promote {version.name} --force --why REASON",
        )
    if not gates.passed:
        raise refused(version.name, gates.failed)


def rollback_target(history: Sequence[Record], champion: str | None, to: str | None) -> str:
    """Return the version to go back to: `to`, or the one that the champion replaced when it was promoted.

    `history` holds the pipeline's promotions and rollbacks, the newest first.

    Raises:
        Refused: there is none, or `to` never served.
    """
    served = {str(record.subject) for record in history if record.kind in (PROMOTION, ROLLBACK)}
    if to is not None:
        if to not in served or to == champion:
            raise Refused(
                "only a version that served before can be rolled back to",
                where=to,
                got=to,
                expected=sorted(served - {str(champion)}),
                next_step=f"headrace promote {to} --why REASON",
            )
        return to
    promoted = next((r for r in history if r.kind == PROMOTION and r.subject == champion), None)
    target = None if promoted is None else promoted.body.get("replaced")
    if target is None:
        raise Refused(
            "there is no earlier champion",
            where=str(champion),
            got=f"{len(served)} versions that served",
            expected="two or more",
            next_step="headrace promote VERSION --why REASON",
        )
    return str(target)
