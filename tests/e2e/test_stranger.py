"""A stranger's mistakes end in a message with a next step and an exit code, as text and as JSON, and write nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import main
from headrace.cli.template import write_project

# Words of a command, exit code, and what its message says.
NOTHING_YET = {
    "features --health": (1, "there is no state folder"),
    "lineage Nope": (1, "nothing of that name"),
    "lineage v1": (1, "there is no state folder"),
    "erase Orders.shop=x --why T": (1, "there is no state folder"),
    "erase Orders.shop=x --why T --yes": (1, "there is no state folder"),
    "compact": (1, "there is no state folder"),
    "backfill": (1, "there is no state folder"),
    "backfill --from 2024-01-01 --to 2024-02-01": (1, "there is no state folder"),
    "online rebuild": (1, "there is no state folder"),
    "reproduce v1": (1, "there is no state folder"),
    "verify": (1, "there is no state folder"),
    "quarantine list Orders": (1, "there is no state folder"),
    "quarantine release Orders --everything --why T": (1, "there is no state folder"),
    "dead-letters list": (1, "there is no state folder"),
    "dead-letters replay orders:pipeline": (1, "there is no state folder"),
}
WRONG = {
    "lineage": (2, "one name is needed"),
    "lineage Orders.hors": (1, "nothing of that name"),
    "lineage v7": (1, "no such version"),
    "erase": (2, "one key is needed"),
    "erase Orders.shop=x": (2, "an erasure needs a reason"),
    "erase Orders.shap=x --why T": (2, "not a column and a value"),
    "quarantine list": (2, "Missing argument 'SOURCE'"),
    "quarantine list Nope": (2, "no source Nope"),
    "quarantine show Orders abc": (2, "no such row waits in quarantine"),
    "quarantine release Orders --why T": (2, "which rows?"),
    "quarantine release Orders --why T --ids 12345678": (2, "no such row waits in quarantine"),
    "quarantine drop Orders --why T --run 3": (2, "no such verdict"),
    "quarantine drop Orders --why T --run then": (2, "--run: not a date or instant"),
    "quarantine drop Orders --why T --everything": (2, "no open row of Orders is selected"),
    "dead-letters list --source Nope": (2, "no such source"),
    "dead-letters list --status lost": (2, "no such status"),
    "dead-letters show orders:pipeline z": (2, "no such dead letter"),
    "dead-letters drop orders:pipeline --why T": (2, "which dead letters?"),
    "contract infer Nope": (2, "neither a place nor a source"),
    "contract infer orders.py": (2, "not a data file"),
    "contract infer Orders --to orders.py": (2, "the file exists"),
    "verify --since lately": (2, "--since: not a duration"),
    "backfill --from 2024-01-01": (2, "a span needs --from and --to"),
    "backfill --from then --to now": (2, "--from: not a date or instant"),
    "backfill --from 2024-02-01 --to 2024-01-01": (2, "not a span of whole days"),
    "backfill --group Nope": (2, "no such feature group"),
    "online rebuild --group Nope": (2, "no such feature group"),
    "reproduce": (2, "one version is needed"),
    "reproduce v7": (1, "no such version"),
    "features x:y": (1, "no project file x.py"),
}
ANSWERED = ("features", "features nowhere", "lineage Orders", "plan", "quarantine list Orders", "dead-letters list", "compact",
            "verify", "backfill", "online rebuild", "reproduce v1", "contract infer Orders", "checks", "erase Orders.shop=x --why T")  # fmt: skip


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger") / "project"
    write_project(str(folder))
    return folder


def said(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    told = capsys.readouterr()
    return int(stopped.value.code or 0), told.out, told.err


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def expect(words: str, code: int, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Say a command in both ways; each tells the same and what to do next."""
    found, out, text = said(words, capsys)
    assert (found, out) == (code, ""), text
    assert what in text and "Traceback" not in text
    if "Usage: headrace" not in text:
        assert "\n  next:" in text
    found, out, text = said(f"{words} --json", capsys)
    told = json.loads(text)
    assert (found, out) == (code, "") and what in told["what"] and told["next"]


@pytest.mark.parametrize("words", NOTHING_YET)
def test_before_the_first_run_nothing_is_made(
    words: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(empty)
    code, what = NOTHING_YET[words]
    expect(words, code, what, capsys)
    assert not (empty / ".headrace").exists()


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_told_with_what_to_do(
    words: str, trained_shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained_shop)
    code, what = WRONG[words]
    expect(words, code, what, capsys)


@pytest.mark.parametrize("words", ANSWERED)
def test_every_answer_is_one_json_document(
    words: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    code, out, errors = said(f"{words} --json", capsys)
    assert code == 0, errors
    assert isinstance(json.loads(out), dict)
