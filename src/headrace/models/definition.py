"""Hand a trained estimator over to Headrace, which turns it into a servable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from headrace.core.errors import DefinitionError
from headrace.core.location import user_location

FORMATS = ("onnx", "lightgbm")


@dataclass(frozen=True)
class Model:
    """Hold a fitted estimator and the format in which it shall be kept; made by `hr.model`."""

    estimator: Any
    format: str
    location: str = field(default_factory=user_location)


def model(estimator: Any, *, format: str = "onnx") -> Model:
    """Return a fitted scikit-learn or LightGBM estimator as the result of a training function.

    Raises:
        DefinitionError: an unknown format, or an object that cannot predict.
    """
    if format not in FORMATS:
        raise DefinitionError("unknown model format", where=user_location(), got=format, expected=FORMATS)
    if not hasattr(estimator, "predict"):
        raise DefinitionError("not a fitted estimator", where=user_location(), got=type(estimator).__name__)
    return Model(estimator, format)
