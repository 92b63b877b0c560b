"""Settings say where things are; what does not fit is named with its file and key, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.errors import ConfigurationError
from headrace.core.settings import FILE, Settings, Table, load_settings
from headrace.core.time import DAY, MINUTE

EXAMPLE = """
[project]
modules = ["flights"]

[sources.Flights]
path = "data/*.parquet"
zone = "America/New_York"
lag = "5m"
columns = { tail = "Tail Number" }

[limits]
event_bytes = "2MB"

[stores]
ledger = "postgresql://user:${env:PASSWORD}@db/x"

[env.prod.sources.Flights]
path = "s3/*.parquet"

[env.prod.stores]
ledger = "postgresql://user:${env:PROD_PASSWORD}@db/x"
"""


def read(folder: Path, text: str, **options: str) -> Settings:
    (folder / FILE).write_text(text)
    return load_settings(folder, env=options.pop("env", None), environment=options)


def message(folder: Path, text: str, **options: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        read(folder, text, **options)
    return str(error.value).replace(str(folder), "…")


def test_every_part_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, EXAMPLE, PASSWORD="pw")
    flights = found.source("Flights")
    assert found.project.modules == ("flights",)
    assert (flights.path, flights.zone, flights.lag) == ("data/*.parquet", "America/New_York", 5 * MINUTE)
    assert flights.columns == {"tail": "Tail Number"}
    assert found.limits.event_bytes == 2_000_000
    assert found.stores.ledger == "postgresql://user:pw@db/x"


def test_an_environment_is_laid_over_the_rest(tmp_path: Path) -> None:
    found = read(tmp_path, EXAMPLE, env="prod", PROD_PASSWORD="secret")
    assert found.source("Flights").path == "s3/*.parquet"
    assert found.source("Flights").lag == 5 * MINUTE
    assert found.stores.ledger == "postgresql://user:secret@db/x"


def test_without_a_file_defaults_hold(tmp_path: Path) -> None:
    found = load_settings(tmp_path)
    assert found == Settings()
    assert (found.stores.state, found.limits.null_rate_period) == (".headrace", 30 * DAY)


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    found = read(tmp_path, EXAMPLE + '[alerts]\nops = "https://hook/${env:PASSWORD}"', PASSWORD="hunter2")
    assert found.alerts == {"ops": "https://hook/hunter2"}
    assert "hunter2" not in f"{found!r} {found} {found.stores!r}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[sources.F]\npath = "x"\nzon = "UTC"',
            "unknown setting zon\n  where:    …/headrace.toml: sources.F.zon\n"
            "  got:      zon\n  next:     did you mean zone?",
        ),
        (
            "[store]",
            "unknown setting store\n  where:    …/headrace.toml: store\n"
            "  got:      store\n  next:     did you mean stores?",
        ),
        (
            '[sources.F]\npath = "x"\nzone = "Mars"',
            "a setting does not fit\n  where:    …/headrace.toml: sources.F.zone\n"
            "  expected: unknown time zone; expected an IANA name such as Europe/Paris",
        ),
        (
            '[sources.F]\nlag = "soon"\nformat = "xml"',
            "a setting does not fit (and 1 more)\n  where:    …/headrace.toml: sources.F.format\n"
            "  expected: Input should be 'parquet', 'csv', 'jsonl' or 'delta'",
        ),
        (
            '[limits]\nevent_bytes = "0B"',
            "a setting does not fit\n  where:    …/headrace.toml: limits.event_bytes\n"
            "  expected: Input should be greater than 0",
        ),
        (
            '[stores]\nledger = "x:${env:NO_SUCH}"',
            "the environment variable NO_SUCH is not set\n  where:    …/headrace.toml: stores.ledger\n"
            "  got:      ${env:NO_SUCH}\n  next:     export NO_SUCH=…",
        ),
        (
            "[env]\nprod = 5",
            "[env] holds one table for each environment\n  where:    …/headrace.toml\n  got:      {'prod': 5}",
        ),
        (
            "path = ",
            "the settings cannot be read\n  where:    …/headrace.toml\n"
            "  got:      Invalid value (at end of document)\n  expected: TOML in UTF-8",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_a_misspelt_environment_is_named(tmp_path: Path) -> None:
    assert message(tmp_path, "[env.prod]", env="prd").endswith("next:     did you mean prod?")


def test_a_misfit_never_shows_the_value(tmp_path: Path) -> None:
    assert "hunter2" not in message(tmp_path, '[stores]\nledger = ["${env:PW}"]', PW="hunter2")


def test_a_misspelt_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, '[sources.Flihgts]\npath = "x"').source("Flights")
    assert error.value.got == "did you mean Flihgts?"


def test_every_setting_says_what_it_is() -> None:
    def fields(model: type[Table]) -> list[tuple[str, str | None]]:
        return [(f"{model.__name__}.{name}", field.description) for name, field in model.model_fields.items()]

    tables = [model for model in Table.__subclasses__() if model is not Settings]
    undocumented = [name for model in tables for name, description in fields(model) if not description]
    assert len(tables) >= 4
    assert undocumented == []
