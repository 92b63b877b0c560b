"""Check the pages of a store's file, without LMDB's own code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from headrace.storage.keyvalue.errors import damaged

# LMDB writes a value that shrank into the overflow pages that it had. The verifier takes these spare pages for damage, and
# then misses them in its count.
LEAK = "neither reachable nor in the freeDB"
SPARE_PAGES = re.compile(
    r"header mp_pages (?P<held>\d+) != OVPAGES\(\d+\)=(?P<needed>\d+)"
    r"|walked (?P<walked>\d+) overflow pages, record says (?P<recorded>\d+)"
)


def verify(folder: Path) -> None:
    """Check every page of a store's file without handing it to LMDB, which trusts what it reads and may crash.

    Nobody may be writing meanwhile. A missing file is whole.

    Raises:
        Corrupt: a page is not what LMDB would have written.
    """
    size = file_size(folder)
    if size == 0:
        return
    from lmdb import verify as pages

    class Pages(pages._Verifier):
        """Keep what is damage: of the rest a large store has more than the verifier reports before it gives up."""

        def err(self, msg: str) -> None:
            """Take in a finding."""
            if not _harmless(msg):
                super().err(msg)  # type: ignore[no-untyped-call]

    try:
        with (folder / "data.mdb").open("rb") as file:
            findings: list[str] = Pages(file, size).verify()  # type: ignore[no-untyped-call]
    except pages.VerifyError as error:
        raise damaged(f"lmdb:{folder}", str(error), "an LMDB environment") from error
    if findings:
        raise damaged(f"lmdb:{folder}", findings[0], "a whole LMDB environment")


def _harmless(finding: str) -> bool:
    """Tell whether a finding is only spare pages: more held than needed, or reached by nothing."""
    spare = SPARE_PAGES.search(finding)
    if spare is None:
        return LEAK in finding
    return int(spare["held"] or spare["recorded"]) > int(spare["needed"] or spare["walked"])


def file_size(folder: Path) -> int:
    """Return the bytes of a store's file, 0 where there is none."""
    try:
        return os.stat(folder / "data.mdb").st_size
    except FileNotFoundError:
        return 0
