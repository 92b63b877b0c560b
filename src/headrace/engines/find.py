"""Find an engine by its URL, without importing any other."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from headrace.core.errors import BadUrl, MissingExtra, did_you_mean

if TYPE_CHECKING:
    from headrace.engines.protocol import Engine

RETRIES = 2
EMBEDDED = {
    "local": "headrace.engines.local:LocalEngine",
    "processes": "headrace.engines.processes:ProcessEngine",
    "ray": "headrace.engines.ray:RayEngine",
    "spark": "headrace.engines.spark:SparkEngine",
}
NEEDED = {"ray": "ray", "spark": "pyspark"}
OPTIONS = {"local": ("processes",), "ray": ("address", "cpus"), "spark": ("master", "memory")}
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):(?P<options>[^\0]*)", re.DOTALL)


def open_engine(url: str = "local:", *, retries: int = RETRIES) -> Engine:
    """Open the engine of a URL: a scheme, then options as `name=value`, several joined by `&`.

    >>> with open_engine("local:") as engine:
    ...     engine.capabilities.workers
    1

    Args:
        url: `local:`, `local:processes=4`, `ray:`, `ray:address=ray://head:10001`, `spark:master=local[2]`, or another
            installed engine's.
        retries: how often a bucket is computed again after its worker died.

    Raises:
        BadUrl: no such engine or option.
        MissingExtra: the engine's package is not installed.
        Unavailable: it cannot be started or reached.
    """
    name, options = _named(url)
    factory = _plugin(name) if name not in EMBEDDED else _load(name)
    found: Engine = factory(options, retries=retries)
    return found


def check_engine(url: str) -> None:
    """Find out whether there is such an engine, without importing or starting it.

    Raises:
        BadUrl, MissingExtra: as `open_engine`.
    """
    name, _ = _named(url)
    if name not in EMBEDDED:
        _plugin(name)


def _named(url: str) -> tuple[str, dict[str, str]]:
    """Return the name of a URL's engine and its options."""
    match = _URL.fullmatch(url)
    if match is None:
        raise BadUrl("not an engine", where="[engines]", got=repr(url), expected="local:, ray: or spark:")
    scheme = match["scheme"]
    options = _options(scheme, match["options"])
    package = NEEDED.get(scheme)
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingExtra(
            f"the engine {scheme} is not installed",
            where="[engines]",
            got=f"{scheme}:",
            expected=f"the package {package}",
            next_step=f'pip install "headrace[{scheme}]"',
        )
    return "processes" if scheme == "local" and "processes" in options else scheme, options


def whole(options: Mapping[str, str], name: str, default: int) -> int:
    """Return an option that is a whole number above zero.

    Raises:
        BadUrl: it is something else.
    """
    text = options.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise BadUrl(f"{name} does not fit", where="[engines]", got=text, expected="a whole number above zero")
    return int(text)


def _options(scheme: str, text: str) -> dict[str, str]:
    found = dict(part.partition("=")[::2] for part in text.split("&") if part)
    known = OPTIONS.get(scheme, tuple(found))
    unknown = [name for name in found if name not in known]
    if unknown:
        raise BadUrl(
            f"{scheme} has no option {unknown[0]}",
            where="[engines]",
            got=unknown[0],
            expected=[f"{name}=…" for name in known],
            next_step=did_you_mean(unknown[0], known),
        )
    return found


def _load(name: str) -> Any:
    module, _, attribute = EMBEDDED[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _plugin(scheme: str) -> Any:
    point = next(iter(entry_points(group="headrace.engines", name=scheme)), None)
    if point is not None:
        return point.load()
    known = sorted({*OPTIONS, *(p.name for p in entry_points(group="headrace.engines"))})
    raise BadUrl(
        f"no engine is called {scheme}",
        where="[engines]",
        got=f"{scheme}:",
        expected=", ".join(known),
        next_step=did_you_mean(scheme, known),
    )
