"""Offer contract suites that every backend of a storage shape must pass; they need pytest and Hypothesis.

A package with a backend of its own enrolls it in one line:

    class TestMine(KeyValueContract):
        scheme = "mine"
"""

from __future__ import annotations

from headrace.storage.backends import EMBEDDED, Shape

__all__ = ["enrolled"]


def enrolled(contract: type, shape: Shape) -> dict[str, type]:
    """Return one test class for each embedded backend of a shape, by name, to be put into a test module's globals."""
    return {
        f"Test{scheme.title()}": type(f"Test{scheme.title()}", (contract,), {"scheme": scheme})
        for scheme in EMBEDDED[shape]
    }
