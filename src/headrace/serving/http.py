"""Answer over HTTP: entity-keyed predictions and the Open Inference Protocol, as a raw ASGI application.

Routes: `POST /v1/predict/{pipeline}`; `GET /v2`, `/v2/health/live`, `/v2/health/ready`, `/v2/models/{m}`,
`/v2/models/{m}/ready`, `POST /v2/models/{m}/infer`; `GET /metrics`. Errors are JSON and never show paths or stacks.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from headrace.core.errors import ConfigurationError, DataError, HeadraceError, Unavailable
from headrace.core.version import __version__
from headrace.serving.core import Answer
from headrace.serving.record import CACHED, DEGRADED, FALLBACK, MODELLED
from headrace.serving.signature import stated

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_Handler = Callable[[Message, Receive], Awaitable[bytes]]
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
ELSE = bytes(set(range(256)) - set(b"[]{}"))
CONTAINERS_PER_ROW = 16
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Bound what one request may bring; larger is refused before it is read whole."""

    request_bytes: int = 16 * 2**20
    json_depth: int = 64
    batch_rows: int = 4096
    header_bytes: int = 64 * 2**10


class Service(Protocol):
    """Answer rows; `headrace.pipelines.serve` provides one."""

    name: str

    @property
    def version(self) -> str | None:
        """Return the champion's version, None without one."""
        ...

    def predict(self, rows: Sequence[Any], t: int | None = None) -> list[Answer | HeadraceError]:
        """Answer JSON rows, each with its answer or its own error, at the clock's moment or a stated one."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return the model's inputs: `request` columns and `features` of the tensor."""
        ...

    def infer(self, matrix: np.ndarray[Any, np.dtype[np.float32]]) -> tuple[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Score an encoded matrix with the champion; return its version and the scores."""
        ...


class _Refusal(Exception):
    def __init__(
        self, status: int, what: str, *, next_step: str = "", headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        super().__init__(what)
        self.status, self.headers = status, tuple(headers)
        self.body = {"error": what} | ({"next": next_step} if next_step else {})


@dataclass(frozen=True)
class Filled:
    """Hold how well features are filled: each one's share of the open day's predictions with a value, and how many seconds
    ago the newest applied arrival was (None before the first).
    """

    coverage: Mapping[str, float]
    lag: float | None


class Metrics:
    """Count requests, predictions and their latency for Prometheus; `filled` is asked whenever it scrapes."""

    filled: Callable[[], Filled] | None = None

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
        self.degraded = Counter(
            "headrace_degraded_predictions",
            "Rows answered while the online store could not be read",
            registry=self.registry,
        )
        self.refused = Counter("headrace_refused_rows", "Rows refused by their signature", registry=self.registry)
        buckets = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
        self.latency = Histogram(
            "headrace_prediction_seconds", "Seconds a row took", registry=self.registry, buckets=buckets
        )

        self.coverage = Gauge(
            "headrace_feature_coverage", "Share of the day's rows with a value", ["feature"], registry=self.registry
        )
        self.lag = Gauge(
            "headrace_online_lag_seconds", "Seconds since the newest applied arrival", registry=self.registry
        )

    def page(self) -> bytes:
        """Return the page that Prometheus scrapes."""
        if self.filled is not None:
            found = self.filled()
            for feature, share in found.coverage.items():
                self.coverage.labels(feature).set(share)
            self.lag.set(math.nan if found.lag is None else found.lag)
        return generate_latest(self.registry)


class App:
    """Serve one pipeline as an ASGI application."""

    def __init__(self, service: Service, limits: Limits | None = None) -> None:
        self.service, self.limits, self.metrics = service, limits or Limits(), Metrics()
        model = f"/v2/models/{service.name}"
        self.routes: dict[str, tuple[str, str, _Handler]] = {
            f"/v1/predict/{service.name}": ("predict", "POST", self._on_predict),
            f"{model}/infer": ("infer", "POST", self._on_infer),
            model: ("metadata", "GET", self._on_metadata),
            f"{model}/ready": ("ready", "GET", self._on_ready),
            "/v2/health/ready": ("ready", "GET", self._on_ready),
            "/v2/health/live": ("live", "GET", self._on_live),
            "/v2": ("server", "GET", self._on_server),
            "/metrics": ("metrics", "GET", self._on_metrics),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one connection's request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        route, allowed, answer = self.routes.get(scope["path"], ("other", "", None))
        try:
            if answer is None:
                raise _no_path(scope["path"], self.service.name)
            if scope["method"] != allowed:
                raise _not_allowed(scope["method"], allowed)
            body = await answer(scope, receive)
        except _Refusal as refusal:
            await self._send(send, route, refusal.status, orjson.dumps(refusal.body), *refusal.headers)
        except Unavailable as error:
            told = {"error": error.what} | ({"next": error.next_step} if error.next_step else {})
            await self._send(send, route, 503, orjson.dumps(told), (b"retry-after", b"1"))
        except Exception:
            # The caller learns that it failed, the operator's log (uvicorn's) why. Uvicorn closes the connection then, so the
            # caller must be told, or its next request is lost.
            body = orjson.dumps({"error": "an internal error; the server's log says more"})
            await self._send(send, route, 500, body, (b"connection", b"close"))
            raise
        else:
            await self._send(send, route, 200, body)

    async def _send(self, send: Send, route: str, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.metrics.requests.labels(route, str(status)).inc()
        kind = PROMETHEUS if route == "metrics" and status == 200 else b"application/json"
        standing = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": [*standing, *headers]})
        await send({"type": "http.response.body", "body": body})

    async def _on_predict(self, scope: Message, receive: Receive) -> bytes:
        return self._predict(await self._json(scope, receive))

    async def _on_infer(self, scope: Message, receive: Receive) -> bytes:
        return self._infer(await self._json(scope, receive))

    async def _on_metrics(self, scope: Message, receive: Receive) -> bytes:
        return self.metrics.page()

    async def _on_server(self, scope: Message, receive: Receive) -> bytes:
        return orjson.dumps({"name": "headrace", "version": __version__, "extensions": []})

    async def _on_live(self, scope: Message, receive: Receive) -> bytes:
        return orjson.dumps({"live": True})

    async def _on_ready(self, scope: Message, receive: Receive) -> bytes:
        name = self.service.name
        if self.service.version is None:
            step = f"headrace run {name}"
            raise _Refusal(503, "no model serves yet", next_step=step, headers=[(b"retry-after", b"5")])
        return orjson.dumps({"ready": True, "name": name})

    async def _on_metadata(self, scope: Message, receive: Receive) -> bytes:
        return self._metadata()

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
        self._check_nesting(content)
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise _Refusal(400, f"not JSON: {error.msg}", next_step='send {"rows": [{…}]}') from error

    def _check_nesting(self, content: bytes) -> None:
        """Refuse what would nest deeper than the limit or cost far more memory than its bytes, before it is parsed."""
        brackets = TEXT.sub(b"", content).translate(None, ELSE)
        if len(brackets) > 2 * CONTAINERS_PER_ROW * self.limits.batch_rows:
            step = f"at most {CONTAINERS_PER_ROW * self.limits.batch_rows} lists and objects"
            raise _Refusal(413, "JSON of too many parts", next_step=step)
        if _depth(brackets) > self.limits.json_depth:
            raise _Refusal(400, "JSON nested too deeply", next_step=f"at most {self.limits.json_depth} levels")

    def _too_large(self) -> _Refusal:
        return _Refusal(413, "the request is too large", next_step=f"at most {self.limits.request_bytes} bytes")

    def _predict(self, body: Any) -> bytes:
        rows = body.get("rows") if isinstance(body, dict) else None
        if not isinstance(rows, list) or not rows:
            raise _Refusal(422, "no rows", next_step='send {"rows": [{…}]}')
        if len(rows) > self.limits.batch_rows:
            step = f"at most {self.limits.batch_rows} rows a request"
            raise _Refusal(413, f"{len(rows)} rows are too many", next_step=step)
        unknown = sorted(str(name)[:80] for name in body if name not in ("rows", "t"))
        if unknown:
            raise _Refusal(422, f"unknown {unknown[0]!r}", next_step='send {"rows": [{…}]}, with or without "t"')
        try:
            found = self.service.predict(rows, stated(body.get("t")))
        except DataError as error:
            raise _Refusal(422, error.what, next_step=f"{error.expected}: {error.next_step}") from error
        shown = [self._shown(one) for one in found]
        if all("error" in one for one in shown):
            first = shown[0]
            status = 422 if any(isinstance(one, DataError) for one in found) else 500
            raise _Refusal(status, str(first["error"]), next_step=str(first.get("next") or first.get("expected") or ""))
        return orjson.dumps({"predictions": shown})

    def _shown(self, one: Answer | HeadraceError) -> dict[str, Any]:
        if isinstance(one, HeadraceError):
            self.metrics.refused.inc()
            if not isinstance(one, DataError):
                # The caller's values were right: what went wrong, and where, is the operator's to know.
                return {"error": one.what.partition(":")[0]}
            told = one.to_dict()
            return {k: told[k] for k in ("got", "expected", "next") if k in told} | {"error": one.what}
        self.metrics.predictions.labels(one.version or "none", one.variant).inc()
        self.metrics.latency.observe(one.latency_us / 1e6)
        status = {"fallback": bool(one.flags & FALLBACK), "cached": bool(one.flags & CACHED)}
        if one.flags & MODELLED:
            status["modelled"] = True
        if one.flags & DEGRADED:
            self.metrics.degraded.inc()
            status["degraded"] = True
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
            version, scores = self.service.infer(matrix)
        except DataError as error:
            raise _Refusal(422, error.what) from error
        output = {"name": "score", "datatype": "FP64", "shape": [len(scores)], "data": scores.tolist()}
        answer: dict[str, Any] = {"model_name": self.service.name, "outputs": [output]}
        if isinstance(body.get("id"), str):
            answer["id"] = body["id"]
        return orjson.dumps(answer | {"model_version": version})


def _no_path(path: str, name: str) -> _Refusal:
    asked = path.split("/")[3] if path.startswith(("/v1/predict/", "/v2/models/")) else ""
    if not asked or asked == name:
        return _Refusal(404, "no such path", next_step=f"POST /v1/predict/{name}, GET /v2/models/{name}")
    return _Refusal(404, f"no model {asked[:80]!r}", next_step=f"models: {name}")


def _not_allowed(method: str, allowed: str) -> _Refusal:
    return _Refusal(
        405, f"{method[:20]} is not allowed here", next_step=allowed, headers=[(b"allow", allowed.encode())]
    )


def _depth(brackets: bytes) -> int:
    """Return how deep brackets nest."""
    deepest = depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
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
        numbers: np.ndarray[Any, Any] = np.array(data)
        if numbers.dtype.kind not in "iuf":  # numpy would read "1.5", true and null as numbers
            raise TypeError(f"data of type {numbers.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
            matrix: np.ndarray[Any, np.dtype[np.float32]] = numbers.astype(np.float32).reshape(shape)
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
        found.listen(1024)
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigurationError(
            f"port {port} cannot be used",
            got=getattr(error, "strerror", None) or str(error),
            expected="a free port from 1 to 65535, or 0 for any",
            next_step=f"headrace serve … --port {port + 1 if 0 < port < 65535 else 0}",
        ) from error
    return found
