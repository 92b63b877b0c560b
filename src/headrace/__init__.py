"""Describe an ML system in one readable file, run it, close its loop, and replay it over history.

Every public name is imported on first use, so `import headrace` costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headrace.core.version import __version__

if TYPE_CHECKING:
    from headrace.core.expressions import Column as Column
    from headrace.core.expressions import Expr as Expr
    from headrace.core.expressions import coalesce as coalesce
    from headrace.core.expressions import greatest as greatest
    from headrace.core.expressions import if_else as if_else
    from headrace.core.expressions import least as least
    from headrace.core.expressions.sql import to_sql as to_sql
    from headrace.core.time import Date as Date
    from headrace.core.time import Instant as Instant
    from headrace.evaluation.definition import gap as gap
    from headrace.evaluation.definition import latency as latency
    from headrace.evaluation.definition import metric as metric
    from headrace.evaluation.definition import model_size as model_size
    from headrace.evaluation.definition import skew as skew
    from headrace.features.aggregates import aggregate as aggregate
    from headrace.features.aggregates import count as count
    from headrace.features.aggregates import count_distinct as count_distinct
    from headrace.features.aggregates import first as first
    from headrace.features.aggregates import last as last
    from headrace.features.aggregates import latest as latest
    from headrace.features.aggregates import max as max
    from headrace.features.aggregates import mean as mean
    from headrace.features.aggregates import min as min
    from headrace.features.aggregates import most_frequent as most_frequent
    from headrace.features.aggregates import quantile as quantile
    from headrace.features.aggregates import rate as rate
    from headrace.features.aggregates import stddev as stddev
    from headrace.features.aggregates import sum as sum
    from headrace.features.dataset import downsample as downsample
    from headrace.features.dataset import exists as exists
    from headrace.features.dataset import grid as grid
    from headrace.features.definition import on_demand as on_demand
    from headrace.features.notebook import Dataset as Dataset
    from headrace.features.notebook import FeatureGroup as FeatureGroup
    from headrace.features.notebook import precomputed as precomputed
    from headrace.features.notebook import sql as sql
    from headrace.features.notebook import training_set as training_set
    from headrace.models.definition import Model as Model
    from headrace.models.definition import model as model
    from headrace.monitoring.definition import drift as drift
    from headrace.monitoring.definition import every as every
    from headrace.monitoring.definition import live as live
    from headrace.monitoring.definition import new_labels as new_labels
    from headrace.monitoring.definition import when as when
    from headrace.pipelines.definition import Pipeline as Pipeline
    from headrace.rollout.definition import Rollout as Rollout
    from headrace.rollout.definition import canary as canary
    from headrace.rollout.definition import shadow as shadow
    from headrace.serving.definition import Endpoint as Endpoint
    from headrace.serving.definition import threshold as threshold
    from headrace.sources.definition import Source as Source
    from headrace.sources.definition import column as column
    from headrace.sources.definition import entity as entity
    from headrace.sources.definition import event_date as event_date
    from headrace.sources.definition import event_time as event_time
    from headrace.sources.definition import row_id as row_id
    from headrace.sources.definition import valid_from as valid_from
    from headrace.sources.definition import valid_to as valid_to
    from headrace.sources.infer import source as source
    from headrace.training.data import TrainingData as TrainingData
    from headrace.training.definition import Params as Params
    from headrace.training.definition import Search as Search
    from headrace.training.definition import by_time as by_time
    from headrace.training.definition import train as train
    from headrace.training.fit import Fit as Fit
    from headrace.training.fit import fit as fit
    from headrace.validation.definition import Checks as Checks
    from headrace.validation.definition import check_rows as check_rows
    from headrace.validation.definition import foreign_key as foreign_key
    from headrace.validation.definition import freshness as freshness
    from headrace.validation.definition import js as js
    from headrace.validation.definition import kl as kl
    from headrace.validation.definition import known_at_honest as known_at_honest
    from headrace.validation.definition import ks as ks
    from headrace.validation.definition import measure as measure
    from headrace.validation.definition import missing as missing
    from headrace.validation.definition import null_rate as null_rate
    from headrace.validation.definition import psi as psi
    from headrace.validation.definition import row_count as row_count
    from headrace.validation.definition import stop as stop
    from headrace.validation.definition import unique as unique
    from headrace.validation.definition import warn as warn
    from headrace.validation.examine import validate as validate

_HOMES = {
    "core.expressions": "Column Expr coalesce greatest if_else least",
    "core.expressions.sql": "to_sql",
    "core.time": "Date Instant",
    "evaluation.definition": "gap latency metric model_size skew",
    "features.aggregates": "aggregate count count_distinct first last latest max mean min most_frequent quantile rate stddev sum",
    "features.dataset": "downsample exists grid",
    "features.definition": "on_demand",
    "features.notebook": "Dataset FeatureGroup precomputed sql training_set",
    "sources.definition": "Source column entity event_date event_time row_id valid_from valid_to",
    "models.definition": "Model model",
    "monitoring.definition": "drift every live new_labels when",
    "pipelines.definition": "Pipeline",
    "rollout.definition": "Rollout canary shadow",
    "serving.definition": "Endpoint threshold",
    "sources.infer": "source",
    "training.data": "TrainingData",
    "training.fit": "Fit fit",
    "training.definition": "Params Search by_time train",
    "validation.examine": "validate",
    "validation.definition": (
        "Checks check_rows foreign_key freshness js kl known_at_honest ks measure"
        " missing null_rate psi row_count stop unique warn"
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = ["__version__", *sorted(_HOME)]


if not TYPE_CHECKING:  # a type checker must see which names exist

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            from headrace.core.errors import did_you_mean

            hint = did_you_mean(name, _HOME)
            raise AttributeError(f"headrace has no {name}" + (f"; {hint}" if hint else ""))
        value = getattr(import_module(f"headrace.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
