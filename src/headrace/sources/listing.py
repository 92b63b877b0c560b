"""List the files that a source's `path` names, on this machine or in object storage, as they are at that moment."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from headrace.core.errors import BadUrl, ConfigurationError, DataError, Unavailable
from headrace.core.location import shown
from headrace.core.settings import S3Settings, SourceSettings
from headrace.core.time import SECOND
from headrace.sources.definition import SourceDefinition
from headrace.storage.s3 import S3, file_system

if TYPE_CHECKING:
    from pyarrow import fs

Format = Literal["parquet", "csv", "jsonl", "delta"]
SUFFIXES: Mapping[str, Format] = {"parquet": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
COMPRESSED = ("gz", "bz2", "zst", "lz4")
RACY = 2 * SECOND  # a file changed again within the resolution of its time stamp would look the same
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_PATTERN = re.compile(r"\*\*/?|\*|\?|\[!?[^\]]+\]|.", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Name a file as a listing found it: `mark` tells its state, empty where its time is too young to tell.

    `name` is its path from the project's folder or its URL, `where` the same as messages show it. `partitions` are the
    columns that its folders name, as in `year=2024/`.
    """

    name: str
    where: str
    path: str
    system: fs.FileSystem
    size: int
    modified: int
    partitions: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """Return what changes when the file does."""
        return f"{self.size}:{self.modified}"

    def mark(self, now: int) -> str:
        """Return the state as seen at `now` (microseconds UTC), "" where a later change might leave it the same."""
        return self.state if now - self.modified // 1_000 > RACY else ""

    @property
    def kind(self) -> Format | None:
        """Return the format that the name tells, also of a compressed file."""
        return kind_of(self.path)


def kind_of(path: str) -> Format | None:
    """Return the format that a file's name tells, also of a compressed one.

    >>> kind_of("a/orders.csv.gz"), kind_of("a/notes.txt")
    ('csv', None)
    """
    suffixes = [part.lower() for part in path.rpartition("/")[2].split(".")[1:]]
    last = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in COMPRESSED else suffixes[-1] if suffixes else ""
    return SUFFIXES.get(last)


def list_files(definition: SourceDefinition, settings: SourceSettings, folder: Path) -> list[Place]:
    """Return the files that a source's `path` names, in the order of their names.

    Raises:
        ConfigurationError: settings name no path, or one of an unknown kind.
        DataError: there is no such file.
        Unavailable: the object storage does not answer, or refuses.
    """
    if settings.path is None:
        raise ConfigurationError(
            f"nothing says where the rows of {definition.name} lie",
            where=f"[sources.{definition.name}]",
            expected="path, database or function",
            next_step=f'add to [sources.{definition.name}]: path = "data/{definition.name.lower()}.parquet"',
        )
    scheme, colon, _ = settings.path.partition("://")
    if colon and scheme != "s3":
        raise BadUrl(
            f"{definition.name}: no files are read from there",
            where=f"[sources.{definition.name}] path",
            got=f"{scheme}://",
            expected="a path or s3://BUCKET/KEY",
        )
    found = _remote(definition, settings) if colon else _local(settings.path, folder)
    if not found:
        raise DataError(
            f"{definition.name}: no such file",
            where=f"[sources.{definition.name}] path",
            got=settings.path,
            expected="a file, a folder or a glob" + ("" if colon else f" below {shown(str(folder))}"),
            next_step="check the path, or make the file: what writes it may not have run yet",
        )
    return found


def _local(path: str, folder: Path) -> list[Place]:
    from pyarrow import fs

    pattern, system = str(folder / path), fs.LocalFileSystem()
    if os.path.isfile(pattern):
        names = [pattern]
    elif os.path.isdir(pattern):
        names = sorted(str(p) for p in Path(pattern).rglob("*") if kind_of(p.name) and _visible(str(p), pattern))
    else:
        names = sorted(glob.glob(pattern, recursive=True))
    found = []
    for name in names:
        try:
            status = os.stat(name)
        except FileNotFoundError:  # it went between the listing and here: not of this listing
            continue
        if os.path.isfile(name):
            relative = os.path.relpath(name, folder)
            parts = _partitions(relative)
            found.append(Place(relative, shown(name), name, system, status.st_size, status.st_mtime_ns, parts))
    return found


def _remote(definition: SourceDefinition, settings: SourceSettings) -> list[Place]:
    path = str(settings.path).removeprefix(S3).rstrip("/")
    fixed = re.split(r"[*?\[]", path, maxsplit=1)[0]
    matches = re.compile(_translated(path)).fullmatch
    try:
        system = file_system(settings.s3 or S3Settings())
        infos = list(_objects(system, path, fixed))
    except OSError as error:
        raise Unavailable(
            f"{definition.name}: the object storage cannot be listed",
            where=f"[sources.{definition.name}] path",
            got=str(error).splitlines()[0],
            expected=f"an answer for {settings.path}",
            next_step="check [s3]: endpoint, region and keys, and that the bucket exists",
        ) from error
    whole = path == fixed
    chosen = [
        info
        for info in infos
        if info.is_file
        and (info.path == path or (kind_of(info.path) and _visible(info.path, path)) if whole else matches(info.path))
    ]
    return [
        Place(S3 + i.path, S3 + i.path, i.path, system, i.size, i.mtime_ns, _partitions(i.path))
        for i in sorted(chosen, key=lambda info: str(info.path))
    ]


def _objects(system: fs.FileSystem, path: str, fixed: str) -> Iterator[fs.FileInfo]:
    from pyarrow import fs

    if path == fixed:
        info = system.get_file_info(path)
        if info.is_file:
            yield info
            return
    base = path if path == fixed else fixed.rpartition("/")[0]
    yield from system.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))


def _visible(path: str, root: str) -> bool:
    """Tell whether no part of a path below a folder is hidden, as what writers leave beside their files is."""
    return not any(part.startswith((".", "_")) for part in path[len(root) :].split("/"))


def _partitions(path: str) -> dict[str, str | None]:
    """Return the columns that folders name.

    >>> _partitions("data/year=2024/city=New%20York/part.parquet")
    {'year': '2024', 'city': 'New York'}
    """
    pairs = (part.split("=", 1) for part in path.split("/")[:-1] if "=" in part and not part.startswith("="))
    return {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, value in pairs}


def _translated(pattern: str) -> str:
    """Return a glob as a regular expression; `*` and `?` stop at a slash, `**` does not."""
    found = []
    for piece in _PATTERN.findall(pattern):
        special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(piece)
        bracket = piece.startswith("[") and len(piece) > 1
        found.append(special or (piece.replace("[!", "[^", 1) if bracket else re.escape(piece)))
    return "".join(found)
