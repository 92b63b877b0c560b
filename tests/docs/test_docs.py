"""What README and tutorial promise is true: files, commands, verbs, the refused leak."""

from __future__ import annotations

import doctest
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

import headrace as hr
from headrace.cli.main import app
from headrace.cli.template import write_project
from headrace.core.errors import LeakageError
from headrace.core.expressions import OPERATORS
from headrace.core.settings import Settings, SourceSettings, Table, load_settings
from headrace.engines import check_engine
from headrace.features.plan import plan_dataset
from headrace.pipelines.project import import_file, load_project
from headrace.pipelines.run import run
from headrace.pipelines.view import Silent

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/notebook.md",
    "docs/features.md",
    "docs/reliability.md",
    "docs/expressions.md",
    "docs/settings.md",
    "docs/stores.md",
    "docs/streams.md",
    "docs/sources.md",
    "docs/performance.md",
    "docs/validation.md",
    "docs/engines.md",
    "docs/catalogue.md",
    "docs/state.md",
    "CONTRIBUTING.md",
    "docs/decisions/README.md",
]
FLIGHTS = ROOT / "examples" / "flights" / "flights.py"


def verbs() -> set[str]:
    command = typer.main.get_command(app)
    groups: dict[str, Any] = command.commands  # type: ignore[attr-defined]
    return set(groups) | {f"{name} {sub}" for name, group in groups.items() for sub in getattr(group, "commands", ())}


def test_every_command_in_the_documentation_exists() -> None:
    known = verbs()
    for page in PAGES:
        for line in re.findall(r"(?<!import )headrace ([a-z][a-z-]*(?: [a-z]+)?)", (ROOT / page).read_text()):
            assert line in known or line.split()[0] in known or line.split()[0] in {"new"}, f"{page}: headrace {line}"


def test_every_verb_of_the_command_line_takes_json() -> None:
    command = typer.main.get_command(app)
    for name, verb in command.commands.items():  # type: ignore[attr-defined]
        for one in getattr(verb, "commands", {"": verb}).values():
            assert any("--json" in p.opts for p in one.params), name


def test_the_verbs_that_look_after_features_and_state_are_explained() -> None:
    told = " ".join((ROOT / page).read_text() for page in ("docs/catalogue.md", "docs/state.md"))
    explained = {verb for verb in verbs() if f"headrace {verb}" in told}
    needed = {"features", "lineage", "plan", "backfill", "online rebuild", "verify", "reproduce", "compact", "erase"}
    assert needed <= explained


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def test_the_leak_is_refused_as_the_pages_show(tmp_path: Path) -> None:
    text = FLIGHTS.read_text()
    where = "        Flights.distance_km,\n"
    (tmp_path / "leaky.py").write_text(text.replace(where, where + "        Flights.dep_delay,\n", 1))
    module = import_file(tmp_path / "leaky.py")
    sys.path.remove(str(tmp_path))
    with pytest.raises(LeakageError) as error:
        plan_dataset(module.dataset)
    shown = str(error.value).splitlines()
    shown[1] = "  where:    flights.py:" + shown[1].rpartition(":")[2]
    for page in ("README.md", "docs/tutorial.md"):
        told = (ROOT / page).read_text()
        for line in shown:
            assert line in told, f"{page} lacks: {line}"


def test_the_readme_shows_lines_that_the_example_has() -> None:
    """The shortened file in the README may leave out, not invent."""
    source = " ".join(FLIGHTS.read_text().split())
    block = (ROOT / "README.md").read_text().split("```python")[1].split("```")[0]
    for piece in (
        'hr.mean(Flights.dep_delay).over("1h", "3h", "24h")',
        'hr.metric("auc") >= 0.66',
        'known_at = sched_dep - "30d"',
    ):
        assert piece in block
        assert piece in source


def test_the_notebook_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "shop"
    write_project(str(project))
    run(load_project("orders:pipeline", folder=project), state=None, seed=1, progress=Silent())
    monkeypatch.chdir(project)
    assert attempted("docs/notebook.md") > 12


def test_the_page_on_features_runs_as_it_stands() -> None:
    assert attempted("docs/features.md") > 10


def attempted(page: str) -> int:
    """Run a page's blocks one after the other and return how many lines there were; each must give what it shows."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {"__name__": "page"}, page, None, 0)
    report: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    found = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert found.failed == 0, "".join(report)
    return found.attempted


def test_the_expressions_page_runs_as_it_stands() -> None:
    assert attempted("docs/expressions.md") > 7


def test_every_operator_and_method_is_on_the_expressions_page_with_its_meaning() -> None:
    page = (ROOT / "docs/expressions.md").read_text()
    rows = [line.replace("\\|", "|") for line in page.splitlines() if line.startswith("| `")]
    for operator in OPERATORS.values():
        assert f"| `{operator.written}` | {operator.expects} | {operator.meaning} |" in rows
    for name in [n for n in dir(hr.Expr) if not n.startswith("_") and n != "kind"]:
        assert any(f"a.{name}(" in row for row in rows), name


def test_the_streams_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/streams.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {"__name__": "page"}, "docs/streams.md", None, 0)
    report: list[str] = []
    found = doctest.DocTestRunner().run(test, out=report.append)
    assert found.attempted > 12
    assert found.failed == 0, "".join(report)
    for number, text in enumerate(re.findall(r"```toml\n(.*?)```", page, re.S)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "headrace.toml").write_text(text)
        assert load_settings(tmp_path / str(number)).sources


def test_every_metric_of_streams_is_on_their_page(tmp_path: Path) -> None:
    page = (ROOT / "docs/streams.md").read_text()
    source = (ROOT / "src/headrace/pipelines/feed_metrics.py").read_text()
    names = re.findall(r'"(headrace_[a-z_]+)"', source)
    assert len(names) == 6
    for name in names:
        assert name in page


def test_the_page_of_sources_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/sources.md").read_text()
    test = doctest.DocTestParser().get_doctest(page, {"__name__": "page"}, "docs/sources.md", None, 0)
    report: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=report.append)
    assert found.attempted > 20
    assert found.failed == 0, "".join(report)
    for name in SourceSettings.model_fields:
        assert (
            f"`{name}`" in page or f"{name} = " in page or name in ("stream", "codec", "schemas", "lateness", "s3")
        ), name


def test_the_page_on_engines_runs_and_its_settings_are_read(tmp_path: Path) -> None:
    page = (ROOT / "docs/engines.md").read_text()
    assert attempted("docs/engines.md") > 3
    (settings,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "headrace.toml").write_text(settings)
    for env in (None, "prod"):
        check_engine(load_settings(tmp_path, env=env).engines.features)
    (typed,) = re.findall(r'--engine "(.*?)"', page)
    check_engine(typed)


def test_the_validation_page_runs_as_it_stands() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/validation.md").read_text(), re.S)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, "docs/validation.md", None, 0)
    report: list[str] = []
    found = doctest.DocTestRunner().run(test, out=report.append)
    assert found.attempted > 6
    assert found.failed == 0, "".join(report)


def test_every_setting_is_on_the_settings_page_with_its_meaning() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for table, field in Settings.model_fields.items():
        assert f"[{table}" in page
        model = get_args(field.annotation)[-1] if get_args(field.annotation) else field.annotation
        if not (isinstance(model, type) and issubclass(model, Table)):
            continue
        for name, setting in model.model_fields.items():
            row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
            assert row.endswith(f"| {setting.description} |"), f"[{table}] {name}"
            default = row.split("|")[2].strip().strip("`")
            assert default == "—" or model.model_validate({name: json.loads(default)}) == model()
            assert (default == "—") == (setting.default is None)
