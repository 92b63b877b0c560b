"""Declare the whole: a model, its gates, its endpoint, its rollout and its monitors."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.core.errors import DefinitionError
from headrace.core.limits import Limit
from headrace.core.location import user_location
from headrace.evaluation.definition import BeatsChampion, Gate
from headrace.monitoring.definition import Every, Monitor, NewLabels, Trigger
from headrace.rollout.definition import Rollout
from headrace.serving.definition import Endpoint, Threshold
from headrace.training.definition import Training


class Pipeline:
    """Tie the parts of an ML system together; everything else is reached from here."""

    def __init__(
        self,
        *,
        model: Training,
        decision: Threshold | None = None,
        gates: Sequence[Gate] = (),
        endpoint: Endpoint | None = None,
        rollout: Rollout | None = None,
        monitors: Sequence[Monitor] = (),
        retrain_on: Sequence[Trigger] = (),
    ) -> None:
        self.location = user_location()
        self._refuse("model", [model], (Training,), "a function under @hr.train(…)")
        self._refuse("gates", gates, (Limit, BeatsChampion), 'hr.metric("auc") >= 0.7')
        self._refuse("monitors", monitors, (Monitor,), 'hr.when(…, every="1d")')
        self._refuse("retrain_on", retrain_on, (Every, NewLabels), 'hr.every("45d") or hr.new_labels(40_000)')
        if rollout is not None and endpoint is None:
            raise DefinitionError(
                "a rollout needs an endpoint", where=self.location, next_step="endpoint=hr.Endpoint()"
            )
        self.model, self.decision, self.gates = model, decision, tuple(gates)
        self.endpoint, self.rollout = endpoint, rollout
        self.monitors, self.retrain_on = tuple(monitors), tuple(retrain_on)

    def _refuse(self, name: str, values: Sequence[object], kinds: tuple[type, ...], expected: str) -> None:
        for value in values:
            if not isinstance(value, kinds):
                raise DefinitionError(
                    f"Pipeline({name}=…)", where=self.location, got=type(value).__name__, expected=expected
                )
