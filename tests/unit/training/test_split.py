from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from headrace.core.errors import DataError
from headrace.core.time import DAY, HOUR
from headrace.training.definition import ByTime
from headrace.training.plan import split_rows


@given(
    st.lists(st.tuples(st.integers(0, 60 * 24), st.sampled_from([0.0, 1.0, float("nan")])), min_size=400, max_size=600),
    st.integers(0, 4),
    st.integers(3, 12),
)
def test_no_label_of_an_earlier_part_was_unknown_when_the_next_began(
    made: list[tuple[int, float]], mature: int, span: int
) -> None:
    t = np.array([hour for hour, _ in made], np.int64) * HOUR
    label = np.array([y for _, y in made])
    try:
        split = split_rows(t, label, ByTime(span * DAY, span * DAY, None), mature=mature * DAY, kind="regression")
    except DataError:
        reject()
    for earlier, later in ((split.train, split.valid), (split.valid, split.test)):
        assert t[earlier].max() + mature * DAY <= t[later].min()
    places = np.concatenate([split.train, split.valid, split.test])
    assert len(set(places.tolist())) == len(places)
    assert not np.isnan(label[places]).any()
    assert split.censored == np.isnan(label).sum()
    assert split.embargoed + split.censored + len(places) == len(t)
    assert t[split.test].min() > t.max() - span * DAY
    assert all((np.diff(t[rows]) >= 0).all() for rows in split.parts().values())


def hours(n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(n, dtype=np.int64) * HOUR


def test_an_embargo_of_ones_own_replaces_the_dataset_s() -> None:
    label = np.arange(1_000, dtype=np.float64) % 2
    mine = split_rows(hours(1_000), label, ByTime(5 * DAY, 5 * DAY, DAY), mature=3 * DAY, kind="classification")
    theirs = split_rows(hours(1_000), label, ByTime(5 * DAY, 5 * DAY, None), mature=3 * DAY, kind="classification")
    assert (mine.embargoed, theirs.embargoed) == (48, 144)
    assert (len(mine.test), len(mine.valid), len(mine.train)) == (120, 120, 712)
    assert mine.facts()["bounds"] == {
        "train": ["1970-01-01T00:00:00Z", "1970-01-30T15:00:00.000001Z"],
        "valid": ["1970-01-31T15:00:00.000001Z", "1970-02-05T15:00:00.000001Z"],
        "test": ["1970-02-06T15:00:00.000001Z", "1970-02-11T15:00:00.000001Z"],
    }


def test_too_little_data_is_refused_with_its_counts() -> None:
    label = np.where(np.arange(200) < 30, np.nan, 1.0)
    with pytest.raises(DataError) as caught:
        split_rows(hours(200), label, ByTime(5 * DAY, 3 * DAY, None), mature=DAY, kind="regression", where="risk")
    assert str(caught.value) == (
        "too little data: the train part has 0 rows, 50 needed\n"
        "  where:    risk\n"
        "  got:      200 matured rows over 8d7h, 30 of them without a label; "
        "by part {'train': 0, 'valid': 74, 'test': 72}\n"
        "  expected: rows in train, valid and test, with the embargo between them\n"
        "  next:     shorten hr.by_time(valid=…, test=…), or wait for more rows"
    )


def test_no_rows_at_all_are_too_few() -> None:
    with pytest.raises(DataError, match="too little data"):
        split_rows(hours(0), np.zeros(0), ByTime(DAY, DAY, None), mature=DAY, kind="regression")


def test_a_part_of_one_class_is_refused() -> None:
    label = np.where(np.arange(1_000) < 800, np.arange(1_000) % 2, 0.0)
    with pytest.raises(DataError) as caught:
        split_rows(hours(1_000), label, ByTime(5 * DAY, 5 * DAY, None), mature=DAY, kind="classification")
    assert "the test part has one class only" in str(caught.value)
    assert "0 of 120 rows are positive" in str(caught.value)
