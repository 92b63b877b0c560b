from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pytest
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.core.errors import DataError, DefinitionError, UserCodeError
from headrace.core.time import DAY, Instant, VirtualClock
from headrace.features.record import TrainingSet
from headrace.storage.ledger import open_ledger
from headrace.storage.ledger.protocol import Entry
from headrace.training.definition import Training
from headrace.training.facts import gather
from headrace.training.record import RunRecord, Trial
from headrace.training.run import Trained, train

Make = Callable[..., Training]
CLOCK = VirtualClock(Instant.parse("2013-03-05"))
PARAMS = {"num_leaves": 8, "learning_rate": 0.1}


class Kept:
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def append(self, entries: Sequence[Entry]) -> None:
        self.entries += entries


def trained(training: Training, rows: TrainingSet, **options: Any) -> Trained:
    return train(training, rows, **{"seed": 3, "threads": 1, "clock": CLOCK, **options})


def test_the_same_rows_and_seed_give_the_same_model_with_one_or_two_threads(make: Make, rows: TrainingSet) -> None:
    first, second = trained(make(), rows, threads=1), trained(make(), rows, threads=2)
    assert first.servable.content == second.servable.content
    assert first.servable.manifest.digest == second.servable.manifest.digest
    assert first.record.digest == second.record.digest
    assert trained(make(), rows, seed=4).record.digest != first.record.digest


def test_the_vocabulary_is_learned_on_training_rows_alone(make: Make, rows: TrainingSet) -> None:
    carriers = np.array(rows.features["carrier"].to_pylist(), object)
    carriers[rows.t > rows.t.max() - 20 * DAY] = "NEW"
    features = rows.features.set_column(0, "carrier", pa.array(carriers.tolist()))
    found = trained(make(), dataclasses.replace(rows, features=features), params=PARAMS)
    assert set(found.servable.encoder.vocabularies[0]) == {"UA", "AA", "B6"}
    assert set(found.data.test.X.numpy()[:, 0].tolist()) == {3.0}


def test_the_parts_hold_what_they_say(make: Make, rows: TrainingSet) -> None:
    found = trained(make(), rows, params=PARAMS)
    for part in (found.data.train, found.data.valid, found.data.test):
        assert part.X.columns == found.servable.encoder.names and part.X.categorical == (0,)
        assert part.X.arrow().num_rows == len(part) == len(part.t)
        assert np.array_equal(part.y, rows.label[part.rows]) and np.array_equal(part.t, rows.t[part.rows])
    assert found.record.split["censored"] == int(np.isnan(rows.label).sum())


def test_given_parameters_are_used_without_a_search(make: Make, rows: TrainingSet) -> None:
    found = trained(make(), rows, params=PARAMS)
    assert (found.record.params, found.trials) == (PARAMS, ())
    with pytest.raises(DefinitionError, match="unknown parameter"):
        trained(make(), rows, params={**PARAMS, "leafs": 3})


def test_a_resumed_search_gives_the_uninterrupted_model(make: Make, rows: TrainingSet) -> None:
    told: list[Trial] = []
    whole = trained(make(), rows, trials=4, progress=told.append)
    assert list(whole.trials) == told and len(told) == 4
    for stopped in (1, 4):
        resumed = trained(make(), rows, trials=4, finished=told[:stopped])
        assert resumed.trials == whole.trials
        assert resumed.servable.content == whole.servable.content


def test_the_best_may_be_a_finished_trial_whose_model_is_fitted_again(make: Make, rows: TrainingSet) -> None:
    told: list[Trial] = []
    trained(make(), rows, trials=1, progress=told.append)
    best = dataclasses.replace(told[0], value=-1.0)
    found = trained(make(), rows, trials=3, finished=[best])
    assert found.record.params == best.params and len(found.trials) == 3
    assert found.servable.content == trained(make(), rows, params=best.params).servable.content


def test_the_record_holds_model_and_baseline_and_is_kept_in_the_ledger(
    make: Make, rows: TrainingSet, tmp_path: Path
) -> None:
    with open_ledger(f"sqlite:{tmp_path / 'ledger'}", clock=CLOCK) as ledger:
        found = trained(make(), rows, tracker=ledger, facts=gather())
        (kept,) = ledger.read(kinds=["run"])
        assert kept.subject == found.record.id
        assert RunRecord.from_json(kept.body) == found.record
        assert ledger.series(found.record.id)["search"] == [(t.number, t.value) for t in found.trials]
        assert ledger.verify().ok
    record = found.record
    assert record.manifest == found.servable.manifest.digest and found.servable.manifest.run == record.id
    for part in ("valid", "test"):
        assert (record.metrics[part]["auc"] or 0) > 0.8 and record.baseline[part]["auc"] > 0.8
    assert max(record.importance, key=lambda name: record.importance[name]) == "delay[0h]"
    assert record.warnings == []
    assert record.environment["lightgbm"] and record.hardware["cpus"]


def test_a_feature_that_gives_the_label_away_is_named(make: Make, leaking: TrainingSet) -> None:
    (warning,) = trained(make(), leaking, params=PARAMS).record.warnings
    assert warning.startswith("target leak? delay[3h] alone separates the label with AUC 1.0000")


def test_a_leak_that_is_in_being_null_or_in_a_text_is_named(make: Make, rows: TrainingSet) -> None:
    told = np.where(np.nan_to_num(rows.label) == 1, "late", "fine").tolist()
    hidden = pa.array(np.ones(len(rows)), mask=np.nan_to_num(rows.label) == 1)
    features = rows.features.set_column(0, "carrier", pa.array(told)).set_column(2, "delay[0h]", hidden)
    warnings = trained(make(), dataclasses.replace(rows, features=features), params=PARAMS).record.warnings
    assert [w.split()[2] for w in warnings] == ["carrier", "delay[0h]"]


def test_a_prior_is_the_share_of_positives(make: Make, rows: TrainingSet) -> None:
    record = trained(make(baseline="prior"), rows, params=PARAMS).record
    assert record.baseline["kind"] == "prior" and record.baseline["test"]["auc"] == 0.5


def test_numbers_are_predicted_too(make: Make, numbers: hr.Dataset, rows: TrainingSet) -> None:
    def line(data: hr.TrainingData, p: hr.Params) -> hr.Model:
        return hr.model(LGBMRegressor(n_estimators=20, verbose=-1, n_jobs=1).fit(data.train.X, data.train.y))

    number = np.nan_to_num(np.array(rows.features["delay[0h]"].to_pylist(), np.float64)) * 2
    found = trained(make(line, dataset=numbers, search=None), dataclasses.replace(rows, label=number))
    assert found.servable.manifest.task == "regression"
    assert (found.record.metrics["test"]["r2"] or 0) > 0.9
    assert "target leak? delay[0h] alone correlates" in found.record.warnings[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_estimators_that_are_not_told_take_the_given_threads_and_print_nothing(
    make: Make, rows: TrainingSet, threads: int, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []

    def plain(data: hr.TrainingData, p: hr.Params) -> hr.Model:
        found.append(joblib.cpu_count(only_physical_cores=True))
        return hr.model(LGBMClassifier(n_estimators=5).fit(data.train.X, data.train.y))

    before = joblib.cpu_count()
    trained(make(plain, search=None), rows, threads=threads)
    assert found == [min(threads, before)] and joblib.cpu_count() == before
    assert "LightGBM" not in capfd.readouterr().out


def test_what_the_function_raises_keeps_its_cause_and_the_run_is_recorded(make: Make, rows: TrainingSet) -> None:
    def broken(data: hr.TrainingData, p: hr.Params) -> hr.Model:
        return hr.model(1 / (p.int("a", 3, 3) - 3))

    kept = Kept()
    with pytest.raises(UserCodeError) as caught:
        trained(make(broken), rows, tracker=kept)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.what == "training broken failed"
    assert caught.value.got == "ZeroDivisionError: division by zero (with {'a': 3})"
    assert str(caught.value.where).endswith(f"conftest.py:{make(broken).location.rsplit(':', 1)[1]}")
    (entry,) = kept.entries
    assert entry.body["status"] == "failed" and entry.body["error"]["error"] == "user_code"


def test_a_function_must_return_a_model(make: Make, rows: TrainingSet) -> None:
    with pytest.raises(UserCodeError) as caught:
        trained(make(lambda data, p: None), rows)
    assert "it returned NoneType instead of hr.model(…)" in str(caught.value)


def test_an_estimator_that_takes_no_null_says_so(make: Make, rows: TrainingSet) -> None:
    def refuses(data: hr.TrainingData, p: hr.Params) -> hr.Model:
        return hr.model(make_pipeline(StandardScaler(), LogisticRegression()).fit(data.train.X, data.train.y))

    with pytest.raises(UserCodeError) as caught:
        trained(make(refuses, search=None), rows)
    assert "ValueError: Input X contains NaN" in str(caught.value)


def test_too_little_data_is_recorded_as_a_failed_run(make: Make, rows: TrainingSet) -> None:
    kept = Kept()
    with pytest.raises(DataError, match="too little data"):
        trained(make(split=hr.by_time(valid="50d", test="50d")), rows, tracker=kept)
    assert kept.entries[0].body["error"]["error"] == "data"


def test_facts_name_the_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    import subprocess

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert gather(tmp_path).code == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    assert gather(tmp_path).code == {"commit": git("rev-parse", "HEAD"), "dirty": None}
    (tmp_path / "a.py").write_text("2")
    assert len(gather(tmp_path).code["dirty"] or "") == 64
