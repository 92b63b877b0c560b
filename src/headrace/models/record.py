"""Hold what is kept of a model beside its bytes: the manifest, from which it can be checked, loaded and explained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import orjson

from headrace.core.errors import Corrupt
from headrace.core.identity import canonical

MANIFEST_FORMAT = 1
Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class ModelFile:
    """Name one file of a model by its content."""

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes) -> Self:
        """Describe bytes that are to be kept under a path inside the model."""
        return cls(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Conversion:
    """Say how far the kept model lies from the trained one: on how many rows, and the largest difference."""

    rows: int
    largest_difference: float
    tolerance: float
    accepts_null: bool


@dataclass(frozen=True)
class Manifest:
    """Describe a servable completely; its digest is the version's identity.

    `output` and `column` say where in the model's output the score stands; `probe` holds the scores of fixed made-up
    rows, by which a loaded model is checked on the machine that is to serve it. Everything is plain JSON.
    """

    format: str
    task: Task
    files: tuple[ModelFile, ...]
    encoder: Mapping[str, Any]
    output: str
    column: int
    conversion: Conversion
    probe: tuple[float, ...]
    run: str = ""
    decision: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return the size of the model's files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the manifest's bytes, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON: equal manifests have equal bytes."""
        return canonical({"manifest": MANIFEST_FORMAT, **asdict(self)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read a manifest.

        Raises:
            Corrupt: the bytes are no manifest of a known format.
        """
        try:
            body = orjson.loads(content)
            if body.pop("manifest") != MANIFEST_FORMAT:
                raise ValueError("unknown manifest format")
            body["files"] = tuple(ModelFile(**file) for file in body["files"])
            body["conversion"] = Conversion(**body["conversion"])
            body["probe"] = tuple(float(score) for score in body["probe"])
            return cls(**body)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                "not a model manifest",
                where="model manifest",
                got=error,
                expected=f"manifest format {MANIFEST_FORMAT}",
                next_step="headrace doctor",
            ) from error
