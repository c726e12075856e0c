"""Runs a released model on the gateway: one interface, three back ends (LiteRT, tflite-runtime, numpy).

The digest of an artifact is checked before anything parses it: an interpreter is given untrusted bytes by nobody
(of 300 corrupted models, the old runtime crashed on 98, and the new one ran 100 altered ones without a word).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

import numpy as np

from vedette_core.learning.layout import Float32
from vedette_core.learning.model_metadata import read_model_metadata
from vedette_core.learning.network import Network, build_network
from vedette_core.learning.weights_file import read_weights
from vedette_schemas.errors import ConfigError, PeerError
from vedette_schemas.features import FeatureSchema
from vedette_schemas.model import MODEL_BYTES_MAX

LITERT: Final = "litert"
TFLITE_RUNTIME: Final = "tflite_runtime"
NUMPY: Final = "numpy"
INTERPRETER_MODULES: Final = {LITERT: "ai_edge_litert.interpreter", TFLITE_RUNTIME: "tflite_runtime.interpreter"}
"""In order of preference: the maintained one first, its predecessor where only that exists (armv7l)."""

BATCH_ROWS: Final = 64
"""Rows a call when there are many: one resize for all, and the tensors stay in the cache."""
SINGLE_ROWS_MAX: Final = 16
"""Up to here one row after the other is faster than a batch that is mostly padding (1 µs a row against 20 to 40)."""
CHECK_TOLERANCE: Final = 1e-6
"""The two ways into one interpreter run the same kernels on the same bytes."""

# y = 2 x in FULLY_CONNECTED, written by the aggregator's own writer (a test rebuilds it).
_PROBE_MODEL: Final = base64.b64decode(
    "JAAAAFRGTDMAAAAAAAAAABQAHAAYABQAEAAMAAgAAAAAAAQAFAAAABgAAACIAAAAyAAAANAAAAB4AgAAAwAAAAEAAAAQAAAAAAAK"
    "ABAADAAIAAQACgAAAAwAAAAcAAAAPAAAAA8AAABzZXJ2aW5nX2RlZmF1bHQAAQAAAAwAAAAIAAwACAAEAAgAAAADAAAABAAAAAEA"
    "AAB5AAAAAQAAAAQAAADG////BAAAAAEAAAB4AAAAAwAAADwAAAAoAAAABAAAAOb///8EAAAABAAAAAAAAAAAAAAAAAAAAAAABgAI"
    "AAQABgAAAAQAAAAEAAAAAAAAQIj///8HAAAAdmVkZXR0ZQABAAAAFAAAAAAADgAYABQAEAAMAAgABAAOAAAAFAAAABwAAABkAAAA"
    "aAAAAGwAAAAEAAAAbWFpbgAAAAABAAAAFAAAAAAADgAUAAAAEAAMAAsABAAOAAAAFAAAAAAAAAgQAAAAFAAAAAQABAAEAAAAAQAA"
    "AAMAAAADAAAAAAAAAAEAAAACAAAAAQAAAAMAAAABAAAAAAAAAAQAAADYAAAAiAAAAEAAAAAEAAAATv///wAAAAEMAAAAFAAAABwA"
    "AAACAAAA/////wEAAAAGAAAAb3V0cHV0AAACAAAAAQAAAAEAAADS////AAAAAQwAAAACAAAAFAAAAAsAAABvdXRwdXQvYmlhcwAB"
    "AAAAAQAAAAAAFgAUABAAAAAMAAgAAAAAAAAAAAAHABYAAAAAAAABDAAAAAEAAAAYAAAADQAAAG91dHB1dC9rZXJuZWwAAAACAAAA"
    "AQAAAAEAAAAAABYAFAAQAAAAAAAMAAAAAAAAAAgABwAWAAAAAAAAAQwAAAAUAAAAHAAAAAIAAAD/////AQAAAAUAAABpbnB1dAAA"
    "AAIAAAABAAAAAQAAAAEAAAAQAAAADAAMAAsAAAAAAAQADAAAAAkAAAAAAAAJ"
)


@dataclass(frozen=True, slots=True)
class RowSlot:
    """Where one row goes in and its reconstruction comes out, without an allocation.

    Attributes:
        source: ``(*input_shape)`` float32: write the row here (``source[...] = row``).
        run: computes `result` from `source`, which it leaves as it is.
        result: ``(*target_shape)`` float32: the reconstruction, until the next `run`.
    """

    source: Float32
    run: Callable[[], None]
    result: Float32


class Backend(Protocol):
    """A loaded model. Not for use by two threads at once."""

    @property
    def name(self) -> str:
        """`LITERT`, `TFLITE_RUNTIME` or `NUMPY`."""

    @property
    def network(self) -> Network:
        """Shapes and target of the model."""

    def reconstruct(self, x: Float32) -> Float32:
        """Reconstructions ``(n, *target_shape)`` float32 of ``(n, *input_shape)`` float32, n ≥ 0; the caller's own.

        Raises:
            ValueError: `x` has another shape.
        """


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An artifact that was verified and opened.

    Attributes:
        backend: runs it.
        schema: feature schema that rows must have.
        task: task in its metadata; empty for a weights file, which has none.
        variant: ``int8``, ``float32`` … or ``weights``.
        sha256: digest of the artifact, hex.
    """

    backend: Backend
    schema: FeatureSchema
    task: str
    variant: str
    sha256: str


def open_model(data: bytes, *, sha256: str, prefer: str | None = None) -> LoadedModel:
    """Verify an artifact and load it into the best back end that works here.

    Args:
        data: a ``.tflite`` flatbuffer or a weights file.
        sha256: digest that the verified release metadata name, 64 hexadecimal digits.
        prefer: `LITERT` or `TFLITE_RUNTIME` to use that one or fail; by default the first that works.

    Raises:
        PeerError: too large, another digest, or contents that are not a model of ours.
        ConfigError: a ``.tflite`` artifact, and no interpreter works here.
    """
    check_digest(data, sha256)
    if data[4:8] != b"TFL3":
        if prefer in INTERPRETER_MODULES:
            raise ConfigError(f"back end {prefer}: found a weights file, which only the {NUMPY} back end runs")
        file = read_weights(data)
        return LoadedModel(NumpyBackend(file.network, file.weights), file.schema, "", "weights", sha256)
    metadata = read_model_metadata(data)
    names = available_interpreters()
    if prefer is not None and prefer not in names:
        raise ConfigError(f"back end {prefer}: it does not work here; working: {', '.join(names) or 'none'}, {NUMPY}")
    if not names:
        raise ConfigError(
            f"model {sha256[:12]} is a .tflite artifact, and neither LiteRT nor tflite-runtime works here; "
            f"take the release's weights file (back end {NUMPY}), or: pip install ai-edge-litert"
        )
    name = prefer or names[0]
    network = build_network(metadata.spec)
    backend = InterpreterBackend(name, _interpreter_class(name), data, network)
    return LoadedModel(backend, metadata.schema, metadata.task, metadata.variant, sha256)


def check_digest(data: bytes, sha256: str) -> None:
    """Refuse bytes that are not the ones a release names.

    Raises:
        PeerError: too large, or another digest.
    """
    if len(data) > MODEL_BYTES_MAX:
        raise PeerError(f"model: found {len(data)} bytes, expected at most {MODEL_BYTES_MAX}", reason="limit")
    found = hashlib.sha256(data).hexdigest()
    if not hmac.compare_digest(found, sha256):
        raise PeerError(f"model: found sha256 {found}, expected {sha256}", reason="digest")


@cache
def available_interpreters() -> tuple[str, ...]:
    """Names of the interpreters that work on this machine, best first.

    Each has built an interpreter and computed with it: under numpy 2 tflite-runtime can be imported, and then fails.
    """
    return tuple(name for name in INTERPRETER_MODULES if _works(name))


class NumpyBackend:
    """The float32 weights, run by numpy: where no interpreter exists."""

    name = NUMPY

    def __init__(self, network: Network, weights: Float32) -> None:
        self.network = network
        self._weights = weights

    def reconstruct(self, x: Float32) -> Float32:
        """See `Backend.reconstruct`."""
        return self.network.reconstruct(x, self._weights).astype(np.float32, copy=False)


class InterpreterBackend:
    """A ``.tflite`` artifact in LiteRT or tflite-runtime: one interpreter for single rows, one for batches.

    Single rows go through views of the interpreter's own input and output memory, which saves two copies and two calls
    a window. The views stay valid because that interpreter is never resized. The public ``invoke`` refuses to run while
    views exist, so that the bound method below it is called; where that is missing, or does not give what the
    public way gives, the public way is taken.

    Attributes:
        name: `LITERT` or `TFLITE_RUNTIME`.
        network: shapes and target of the model.
        slot: the way for one row at a time; a later call of `reconstruct` may overwrite its result.
        uses_views: whether `slot` is the fast way.
    """

    def __init__(self, name: str, interpreter_class: Callable[..., Any], data: bytes, network: Network) -> None:
        """Build the interpreters; `data` is verified already.

        Raises:
            PeerError: the runtime cannot run the model, or its shapes or types are not those of its metadata.
        """
        self.name = name
        self.network = network
        self._class = interpreter_class
        self._data = data
        self._batch: tuple[Any, int, int] | None = None
        try:
            single = interpreter_class(model_content=data, num_threads=1)
            single.allocate_tensors()
            source, result = single.get_input_details()[0], single.get_output_details()[0]
        except (ValueError, RuntimeError, SystemError) as fault:
            raise PeerError(f"model: {name} cannot load it: {fault}", reason="model") from fault
        for what, details, shape in (("input", source, network.input_shape), ("output", result, network.target_shape)):
            if details["dtype"] is not np.float32 or math.prod(details["shape"]) != math.prod(shape):
                raise PeerError(
                    f"model: found {what} {details['dtype'].__name__} of shape {list(details['shape'])}, "
                    f"expected float32 of {shape}",
                    reason="schema",
                )
        self._tensor_shape = tuple(int(n) for n in source["shape"])
        public = self._public_slot(single, source["index"], result["index"])
        views = self._view_slot(single, source["index"], result["index"], public)
        self.uses_views = views is not None
        self.slot = views or public

    def reconstruct(self, x: Float32) -> Float32:
        """See `Backend.reconstruct`."""
        shape, out = self.network.input_shape, np.empty((len(x), *self.network.target_shape), np.float32)
        if x.shape[1:] != shape:
            raise ValueError(f"rows: found shape {x.shape}, expected (n, {', '.join(map(str, shape))})")
        if len(x) <= SINGLE_ROWS_MAX:
            slot = self.slot
            for i, row in enumerate(x):
                slot.source[...] = row
                slot.run()
                out[i] = slot.result
            return out
        for start in range(0, len(x), BATCH_ROWS):
            part = x[start : start + BATCH_ROWS]
            rows = np.zeros((BATCH_ROWS, *self._tensor_shape[1:]), np.float32)
            rows.reshape(BATCH_ROWS, *shape)[: len(part)] = part
            interpreter, source, result = self._open_batch()
            interpreter.set_tensor(source, rows)
            interpreter.invoke()
            out[start : start + len(part)] = interpreter.get_tensor(result).reshape(-1, *out.shape[1:])[: len(part)]
        return out

    def _public_slot(self, interpreter: Any, source_index: int, result_index: int) -> RowSlot:
        source = np.zeros(self.network.input_shape, np.float32)
        result = np.zeros(self.network.target_shape, np.float32)
        tensor, flat = source.reshape(self._tensor_shape), result.reshape(-1)

        def run() -> None:
            interpreter.set_tensor(source_index, tensor)
            interpreter.invoke()
            flat[:] = interpreter.get_tensor(result_index).reshape(-1)

        return RowSlot(source, run, result)

    def _view_slot(self, interpreter: Any, source_index: int, result_index: int, public: RowSlot) -> RowSlot | None:
        """The fast way, if it exists and gives what the public one gives; else none of its views stays alive."""
        shape = self.network.input_shape
        row = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
        public.source[...] = row
        public.run()
        invoke = getattr(getattr(interpreter, "_interpreter", None), "Invoke", None)
        if invoke is None:
            return None
        source: Float32 = interpreter.tensor(source_index)().reshape(shape)
        result: Float32 = interpreter.tensor(result_index)().reshape(self.network.target_shape)
        source[...] = row
        result.fill(np.nan)
        invoke()
        if not (np.array_equal(source, row) and np.allclose(result, public.result, atol=CHECK_TOLERANCE)):
            return None
        return RowSlot(source, invoke, result)

    def _open_batch(self) -> tuple[Any, int, int]:
        """The interpreter for `BATCH_ROWS` rows, built when it is first needed."""
        if self._batch is None:
            interpreter = self._class(model_content=self._data, num_threads=1)
            source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
            interpreter.resize_tensor_input(source, [BATCH_ROWS, *self._tensor_shape[1:]])
            interpreter.allocate_tensors()
            self._batch = interpreter, source, result
        return self._batch


def _interpreter_class(name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = importlib.import_module(INTERPRETER_MODULES[name]).Interpreter
    return found


def _works(name: str) -> bool:
    try:
        interpreter = _interpreter_class(name)(model_content=_PROBE_MODEL, num_threads=1)
        interpreter.allocate_tensors()
        source, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        interpreter.set_tensor(source, np.array([[1.5]], np.float32))
        interpreter.invoke()
        return bool(interpreter.get_tensor(result)[0, 0] == 3.0)
    except (ImportError, AttributeError, ValueError, RuntimeError, SystemError):
        return False
