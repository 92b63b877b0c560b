"""Try a model in a process of its own: read it from standard input, parse it, score its probe rows, report a fault."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from headrace.models.record import Manifest
from headrace.models.servable import Servable, probe_scores

TOLERANCE = 1e-6  # float32 runtimes of other processors round differently


def main() -> None:
    """Answer `{"fault": null}` or a fault's text on standard output."""
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    header = orjson.loads(sys.stdin.buffer.read(length))
    content = sys.stdin.buffer.read()
    manifest = Manifest.from_bytes(header["manifest"].encode())
    if manifest.format == "onnx":
        import onnx
        import onnxruntime  # noqa: F401 - before the limit counts
    _limit_memory(header["memory"])
    fault = None
    if manifest.format == "onnx":
        fault = external_data(onnx.ModelProto.FromString(content))
    sys.stdout.buffer.write(orjson.dumps({"fault": fault or trial(manifest, content)}))


def trial(manifest: Manifest, content: bytes) -> str | None:
    """Return what is wrong with a model's scores on the probe rows, or None."""
    got = np.array(probe_scores(Servable(manifest, content)))
    expected = np.array(manifest.probe)
    if got.shape != expected.shape or not np.all(np.abs(got - expected) <= TOLERANCE * np.maximum(1, np.abs(expected))):
        return f"scores {got.tolist()} instead of {expected.tolist()}"
    return None


def external_data(model: Any) -> str | None:
    """Return the first reference to data outside the model's own bytes, wherever in the model it stands."""
    for message in messages(model):
        if message.DESCRIPTOR.name == "TensorProto" and (message.data_location != 0 or message.external_data):
            return f"tensor {message.name or '?'} lies outside the model: external data is refused"
    return None


def messages(message: Any) -> Iterator[Any]:
    """Walk a protobuf message and everything inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from messages(inner)


def _limit_memory(extra: int) -> None:
    if not sys.platform.startswith("linux"):
        return  # elsewhere RLIMIT_AS is not kept; the time limit still is
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))


if __name__ == "__main__":
    main()
