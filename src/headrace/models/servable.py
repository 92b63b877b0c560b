"""Score rows with a model: many at once, or one at a time as fast as its runtime allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import Corrupt, DataError
from headrace.features.record import FeatureVector
from headrace.models.encoder import Encoder
from headrace.models.record import Manifest

Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]
PROBES = 4


class Runtime(Protocol):
    """Run one model's bytes; the row buffer is the runtime's own and is scored where it stands."""

    row: Matrix

    def many(self, matrix: Matrix) -> Scores:
        """Score a matrix."""
        ...

    def one(self) -> float:
        """Score `row`."""
        ...


class OnnxRuntime:
    """Run ONNX bytes on one thread; input and output of the single row are bound once."""

    def __init__(self, manifest: Manifest, content: bytes, width: int, session: Any = None) -> None:
        self.output, self.column = manifest.output, manifest.column
        self.session = onnx_session(content) if session is None else session
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        if self.output not in shapes:
            raise Corrupt("the model lacks its output", where="model", got=list(shapes), expected=self.output)
        self.row = np.zeros((1, width), np.float32)
        self.scored = np.zeros((1, *shapes[self.output][1:]), np.float32)
        self.binding = self.session.io_binding()
        self.binding.bind_input("x", "cpu", 0, np.float32, self.row.shape, self.row.ctypes.data)
        shape, address = self.scored.shape, self.scored.ctypes.data
        self.binding.bind_output(self.output, "cpu", 0, np.float32, shape, address)
        self.one = self._bound()

    def _bound(self) -> Callable[[], float]:
        # The wrapper's run_with_iobinding costs another microsecond for nothing.
        run, binding = self.session._sess.run_with_iobinding, self.binding._iobinding
        scores, place = memoryview(self.scored.reshape(-1).data), self.column

        def one() -> float:
            run(binding, None)
            return scores[place]

        return one

    def many(self, matrix: Matrix) -> Scores:
        """Score a matrix of shape (rows, features)."""
        scores: Scores = self.session.run([self.output], {"x": matrix})[0][:, self.column].astype(np.float64)
        return scores


class LightGbmRuntime:
    """Run LightGBM's own text format on one thread."""

    def __init__(self, manifest: Manifest, content: bytes, width: int) -> None:
        from lightgbm import Booster

        self.booster = Booster(model_str=content.decode())
        self.row = np.zeros((1, width), np.float32)

    def many(self, matrix: Matrix) -> Scores:
        """Score a matrix of shape (rows, features)."""
        return np.asarray(self.booster.predict(matrix, num_threads=1), np.float64)

    def one(self) -> float:
        """Score the bound row."""
        return float(self.many(self.row)[0])


class Servable:
    """Score rows with a model whose bytes were verified (`headrace.models.verify.load`).

    An instance holds the buffers of one row and serves one thread; `another()` gives a second one on the same model.
    """

    def __init__(self, manifest: Manifest, content: bytes, *, like: Servable | None = None) -> None:
        self.manifest, self.content = manifest, content
        self.encoder: Encoder = Encoder.from_json(manifest.encoder) if like is None else like.encoder
        width = len(self.encoder.columns)
        self._runtime: Runtime
        if manifest.format == "onnx":
            shared = like._runtime.session if like and isinstance(like._runtime, OnnxRuntime) else None
            self._runtime = OnnxRuntime(manifest, content, width, shared)
        elif manifest.format == "lightgbm":
            self._runtime = LightGbmRuntime(manifest, content, width)
        else:
            raise Corrupt(
                "unknown model format", where="model manifest", got=manifest.format, expected="onnx, lightgbm"
            )
        self._encode, self._row, self._one = self.encoder.encode_vector, self._runtime.row[0], self._runtime.one

    def another(self) -> Servable:
        """Return a servable for another thread; an ONNX session is shared."""
        return Servable(self.manifest, self.content, like=self)

    @property
    def size(self) -> int:
        """Return the size of the model's files in bytes."""
        return self.manifest.size

    def score(self, matrix: Matrix) -> Scores:
        """Return one score for each row of an encoded matrix: the probability of "yes", or the predicted number.

        Raises:
            DataError: a row got no number (a null that the model cannot take).
        """
        scores = self.score_or_nan(matrix)
        if np.isnan(scores).any():
            raise self._no_number(f"row {int(np.flatnonzero(np.isnan(scores))[0])} of {len(scores)}")
        return scores

    def score_or_nan(self, matrix: Matrix) -> Scores:
        """Return scores as `score` does, NaN where a row got no number."""
        if not len(matrix):
            return np.zeros(0, np.float64)
        return self._runtime.many(np.ascontiguousarray(matrix, np.float32))

    def score_one(self, vector: FeatureVector) -> float:
        """Return the score of one row of features, the same as `score` gives for its encoding.

        Raises:
            DataError: the row got no number (a null that the model cannot take).
        """
        self._encode(vector, self._row)
        score = self._one()
        if score != score:
            raise self._no_number(vector.to_dict())
        return score

    def _no_number(self, got: object) -> DataError:
        return DataError(
            "the model gave no number",
            where=f"model {self.manifest.digest[:12]}",
            got=got,
            expected="features without null" if not self.manifest.conversion.accepts_null else "a finite score",
            next_step="put an imputer before the estimator, or use one that takes nulls (LightGBM)",
        )


def onnx_session(content: bytes) -> Any:
    """Return an ONNX session on one thread of the CPU, without waiting threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its messages would repeat what the raised error says
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def probe_rows(width: int) -> Matrix:
    """Return the fixed made-up rows on which a loaded model must repeat the scores in its manifest."""
    place = np.arange(PROBES * width, dtype=np.float64).reshape(PROBES, width)
    return ((place * 37 % 11 - 5) * 10.0 ** np.arange(PROBES)[:, None]).astype(np.float32)


def probe_scores(servable: Servable) -> tuple[float, ...]:
    """Return a model's scores on its probe rows; infinity, which JSON cannot hold, as the largest number."""
    scores = servable.score(probe_rows(len(servable.encoder.columns)))
    return tuple(np.nan_to_num(scores).tolist())
