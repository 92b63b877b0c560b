"""Answer over HTTP: entity-keyed predictions and the Open Inference Protocol, as a raw ASGI application.

Routes: `POST /v1/predict/{pipeline}`; `GET /v2`, `/v2/health/live`, `/v2/health/ready`, `/v2/models/{m}`,
`/v2/models/{m}/ready`, `POST /v2/models/{m}/infer`; `GET /metrics`. Errors are JSON and never show paths or stacks.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from headrace.core.errors import ConfigurationError, DataError, HeadraceError, Unavailable
from headrace.core.version import __version__
from headrace.serving.core import Answer
from headrace.serving.record import CACHED, FALLBACK, MODELLED

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Bound what one request may bring; larger is refused before it is read whole."""

    request_bytes: int = 16 * 2**20
    json_depth: int = 64
    batch_rows: int = 4096


class Service(Protocol):
    """Answer rows; `headrace.pipelines.serve` provides one."""

    name: str

    @property
    def version(self) -> str | None:
        """Return the champion's version, None without one."""
        ...

    def predict(self, rows: Sequence[Any]) -> list[Answer | HeadraceError]:
        """Answer JSON rows, each with its answer or its own error."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return the model's inputs: `request` columns and `features` of the tensor."""
        ...

    def infer(self, matrix: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Score an encoded matrix with the champion."""
        ...


class _Refusal(Exception):
    def __init__(
        self, status: int, what: str, *, next_step: str = "", headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(what)
        self.status, self.headers = status, tuple(headers)
        self.body = {"error": what} | ({"next": next_step} if next_step else {})


class Metrics:
    """Count requests, predictions and their latency for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "headrace_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.predictions = Counter(
            "headrace_predictions",
            "Answered rows by version and variant",
            ["version", "variant"],
            registry=self.registry,
        )
        self.refused = Counter("headrace_refused_rows", "Rows refused by their signature", registry=self.registry)
        buckets = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
        self.latency = Histogram(
            "headrace_prediction_seconds", "Seconds a row took", registry=self.registry, buckets=buckets
        )

    def page(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        return generate_latest(self.registry)


class App:
    """Serve one pipeline as an ASGI application."""

    def __init__(self, service: Service, limits: Limits | None = None) -> None:
        self.service, self.limits, self.metrics = service, limits or Limits(), Metrics()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection's request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        route, status, body = "other", 500, b""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        try:
            route, kind, body = await self._route(scope, receive)
            status, headers = 200, ((b"content-type", kind),)
        except _Refusal as refusal:
            status, body = refusal.status, orjson.dumps(refusal.body)
            headers = ((b"content-type", b"application/json"), *refusal.headers)
        except Unavailable as error:
            status, body = 503, orjson.dumps({"error": error.what})
            headers = ((b"content-type", b"application/json"), (b"retry-after", b"1"))
        self.metrics.requests.labels(route, str(status)).inc()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Message, receive: Receive) -> tuple[str, bytes, bytes]:
        method, path, name = scope["method"], scope["path"], self.service.name
        json = b"application/json"
        if path == f"/v1/predict/{name}":
            _only(method, "POST")
            return "predict", json, self._predict(await self._json(scope, receive))
        if path == f"/v2/models/{name}/infer":
            _only(method, "POST")
            return "infer", json, self._infer(await self._json(scope, receive))
        _only(method, "GET")
        if path == "/metrics":
            return "metrics", b"text/plain; version=0.0.4; charset=utf-8", self.metrics.page()
        if path == "/v2":
            return "server", json, orjson.dumps({"name": "headrace", "version": __version__, "extensions": []})
        if path == "/v2/health/live":
            return "live", json, orjson.dumps({"live": True})
        if path in ("/v2/health/ready", f"/v2/models/{name}/ready"):
            if self.service.version is None:
                raise _Refusal(
                    503, "no model serves yet", next_step=f"headrace run {name}", headers=[(b"retry-after", b"5")]
                )
            return "ready", json, orjson.dumps({"ready": True, "name": name})
        if path == f"/v2/models/{name}":
            return "metadata", json, self._metadata()
        asked = path.split("/")[3] if path.startswith(("/v1/predict/", "/v2/models/")) else ""
        raise _Refusal(404, f"no model {asked[:80]!r}" if asked else "no such path", next_step=f"models: {name}")

    async def _json(self, scope: Message, receive: Receive) -> Any:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.limits.request_bytes:
            raise self._too_large()
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Refusal(400, "the request ended early")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.request_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                break
        content = b"".join(parts)
        if _depth(content) > self.limits.json_depth:
            raise _Refusal(400, "JSON nested too deeply", next_step=f"at most {self.limits.json_depth} levels")
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _Refusal(400, f"not JSON: {error.msg}", next_step='send {"rows": [{…}]}') from error

    def _too_large(self) -> _Refusal:
        return _Refusal(413, "the request is too large", next_step=f"at most {self.limits.request_bytes} bytes")

    def _predict(self, body: Any) -> bytes:
        rows = body.get("rows") if isinstance(body, dict) else None
        if not isinstance(rows, list) or not rows:
            raise _Refusal(422, "no rows", next_step='send {"rows": [{…}]}')
        if len(rows) > self.limits.batch_rows:
            step = f"at most {self.limits.batch_rows} rows a request"
            raise _Refusal(413, f"{len(rows)} rows are too many", next_step=step)
        found = self.service.predict(rows)
        shown = [self._shown(one) for one in found]
        if all("error" in one for one in shown):
            raise _Refusal(
                422, str(shown[0]["error"]), next_step=str(shown[0].get("next") or shown[0].get("expected") or "")
            )
        return orjson.dumps({"predictions": shown})

    def _shown(self, one: Answer | HeadraceError) -> dict[str, Any]:
        if isinstance(one, HeadraceError):
            self.metrics.refused.inc()
            told = one.to_dict()
            return {k: told[k] for k in ("got", "expected", "next") if k in told} | {"error": one.what}
        self.metrics.predictions.labels(one.version or "none", one.variant).inc()
        self.metrics.latency.observe(one.latency_us / 1e6)
        status = {"fallback": bool(one.flags & FALLBACK), "cached": bool(one.flags & CACHED)}
        if one.flags & MODELLED:
            status["modelled"] = True
        return {
            "prediction_id": one.id,
            "score": one.score,
            "decision": one.decision,
            "model": self.service.name,
            "version": one.version or None,
            "variant": one.variant,
            "features": one.vector.counts(),
            **status,
        }

    def _metadata(self) -> bytes:
        told = self.service.describe()
        width = len(told["features"])
        return orjson.dumps(
            {
                "name": self.service.name,
                "versions": [self.service.version] if self.service.version else [],
                "platform": "headrace",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, width]}],
                "outputs": [{"name": "score", "datatype": "FP64", "shape": [-1]}],
                "parameters": {"features": told["features"], "request": told["request"]},
            }
        )

    def _infer(self, body: Any) -> bytes:
        width = len(self.service.describe()["features"])
        matrix = _tensor(body, width, self.limits.batch_rows)
        try:
            scores = self.service.infer(matrix)
        except DataError as error:
            raise _Refusal(422, error.what) from error
        output = {"name": "score", "datatype": "FP64", "shape": [len(scores)], "data": scores.tolist()}
        answer: dict[str, Any] = {"model_name": self.service.name, "outputs": [output]}
        if isinstance(body.get("id"), str):
            answer["id"] = body["id"]
        return orjson.dumps(answer | {"model_version": self.service.version})


def _only(method: str, allowed: str) -> None:
    if method != allowed:
        raise _Refusal(405, f"{method} is not allowed here", next_step=allowed, headers=[(b"allow", allowed.encode())])


def _depth(content: bytes) -> int:
    """Return how deep brackets nest, texts skipped: orjson itself recurses without a settable bound."""
    deepest = depth = 0
    inside = escaped = False
    if content.count(b"[") + content.count(b"{") < 2:
        return 1
    for byte in content[: 1 << 20]:
        if inside:
            inside = escaped or byte != 0x22
            escaped = byte == 0x5C and not escaped
        elif byte == 0x22:
            inside = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            deepest = max(deepest, depth)
        elif byte in (0x5D, 0x7D):
            depth -= 1
    return deepest


def _tensor(body: Any, width: int, most: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Read the one input tensor of an inference request, shape (rows, width)."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    given = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], dict) else {}
    shape, data = given.get("shape"), given.get("data")
    if given.get("datatype") not in ("FP32", "FP64") or not isinstance(data, list) or not isinstance(shape, list):
        step = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [n, k], "data": […]}]}'
        raise _Refusal(400, "not an inference request", next_step=step)
    if len(shape) != 2 or shape[1] != width or not isinstance(shape[0], int) or not 0 < shape[0] <= most:
        raise _Refusal(400, "a tensor of another shape", next_step=f"[1 to {most}, {width}]")
    try:
        matrix = np.array(data, np.float32).reshape(shape)
    except (ValueError, TypeError) as error:
        raise _Refusal(
            400, "data do not fill the shape, or are no numbers", next_step=f"{shape[0] * width} numbers"
        ) from error
    if not np.isfinite(matrix).all():
        raise _Refusal(400, "data must be finite", next_step="leave missing values to /v1/predict")
    return matrix


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def bind(host: str, port: int, *, behind_proxy: bool) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigurationError: the address is not loopback and no proxy protects it, or the port is taken.
    """
    if host not in LOOPBACK and not behind_proxy:
        raise ConfigurationError(
            "refusing to listen on an open address without authentication",
            got=host,
            expected="127.0.0.1, or --behind-proxy with a proxy that does authentication and TLS",
            next_step="headrace serve … --host 127.0.0.1",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise ConfigurationError(
            f"port {port} cannot be used",
            got=error.strerror or str(error),
            next_step=f"headrace serve … --port {port + 1}",
        ) from error
    found.listen(1024)
    return found
