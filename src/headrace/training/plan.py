"""Plan a training: which rows train, which judge the search, which are kept for the test. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import DataError
from headrace.core.expressions import type_of
from headrace.core.identity import content_hash, function_source
from headrace.core.time import Instant, format_duration, rough_duration
from headrace.features.dataset import WindowLabel
from headrace.training.definition import ByTime, Training

Rows = NDArray[np.int64]
Kind = Literal["classification", "regression"]
MIN_TRAIN, MIN_JUDGED = 50, 20
PARTS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Hold each part's rows (places in the training set, by moment) and what was left out, and why.

    `bounds` gives each part's half-open span of moments, microseconds UTC; no moment lies in two of them, and between
    two parts lies the embargo, within which labels of the earlier part were not yet known.
    """

    train: Rows
    valid: Rows
    test: Rows
    bounds: dict[str, tuple[int, int]]
    embargo: int
    censored: int
    embargoed: int

    def parts(self) -> dict[str, Rows]:
        """Return the parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def facts(self) -> dict[str, object]:
        """Return sizes, spans and what was left out, as plain JSON."""
        sizes = {name: len(rows) for name, rows in self.parts().items()}
        bounds = {
            name: [Instant(low).isoformat(), Instant(high).isoformat()] for name, (low, high) in self.bounds.items()
        }
        left = {"embargo": format_duration(self.embargo), "embargoed": self.embargoed, "censored": self.censored}
        return {"rows": sizes, "bounds": bounds, **left}


def kind_of(training: Training) -> Kind:
    """Tell from the label's type whether yes or no is predicted, or a number."""
    label = training.dataset.label
    boolean = label.boolean if isinstance(label, WindowLabel) else type_of(label) == "bool"
    return "classification" if boolean else "regression"


def definition_hash(training: Training, dataset_hash: str) -> str:
    """Return the content hash of everything that the author says about a training."""
    split, search = training.split, training.search
    return content_hash(
        {
            "function": function_source(training.function),
            "dataset": dataset_hash,
            "split": [split.valid, split.test, split.embargo],
            "search": None if search is None else [search.trials, search.metric],
            "baseline": training.baseline,
        }
    )


def split_rows(
    t: Rows, label: NDArray[np.float64], split: ByTime, *, mature: int, kind: Kind, where: str = ""
) -> Split:
    """Split matured rows by their moment: the newest `test` span, before it `valid`, before that training.

    Between two parts lies the embargo (`split.embargo`, else `mature`): a label of the earlier part was known before
    the later one begins. Rows without a label (NaN) are censored: counted, and in no part.

    Raises:
        DataError: a part has too few rows, or a classification's part lacks one of the classes.
    """
    if label.ndim > 1:
        raise DataError(
            "a training takes one label",
            where=where or "training",
            got=f"{label.shape[1]} labels to a row",
            expected="a label of one window",
            next_step='give the group\'s part: label=Next.units["7d"]',
        )
    embargo = mature if split.embargo is None else split.embargo
    order = np.argsort(t, kind="stable")
    fitted = order[~np.isnan(label[order])]
    end = int(t.max()) + 1 if len(t) else 0
    test = (end - split.test, end)
    valid = (test[0] - embargo - split.valid, test[0] - embargo)
    train = (int(t.min()) if len(t) else 0, valid[0] - embargo)
    bounds = {"train": train, "valid": valid, "test": test}
    moments = t[fitted]
    parts = {name: fitted[(moments >= low) & (moments < high)] for name, (low, high) in bounds.items()}
    embargoed = len(fitted) - sum(map(len, parts.values()))
    found = Split(**parts, bounds=bounds, embargo=embargo, censored=len(t) - len(fitted), embargoed=embargoed)
    _refuse_too_little(found, t, label, kind, where)
    return found


def _refuse_too_little(split: Split, t: Rows, label: NDArray[np.float64], kind: Kind, where: str) -> None:
    sizes = {name: len(rows) for name, rows in split.parts().items()}
    needed = {"train": MIN_TRAIN, "valid": MIN_JUDGED, "test": MIN_JUDGED}
    short = [name for name in PARTS if sizes[name] < needed[name]]
    if short:
        span = rough_duration(int(t.max() - t.min())) if len(t) else "0s"
        raise DataError(
            f"too little data: the {short[0]} part has {sizes[short[0]]} rows, {needed[short[0]]} needed",
            where=where or "training",
            got=f"{len(t)} matured rows over {span}, {split.censored} of them without a label; by part {sizes}",
            expected="rows in train, valid and test, with the embargo between them",
            next_step="shorten hr.by_time(valid=…, test=…), or wait for more rows",
        )
    if kind == "regression":
        return
    for name, rows in split.parts().items():
        positive = int(np.count_nonzero(label[rows]))
        if positive in (0, len(rows)):
            raise DataError(
                f"the {name} part has one class only",
                where=where or "training",
                got=f"{positive} of {len(rows)} rows are positive",
                expected="both classes in every part",
                next_step="lengthen the part in hr.by_time, or look at the label's definition",
            )
