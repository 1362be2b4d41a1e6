"""Running an ONNX model with ONNX Runtime: the one place that touches it.

Edge, cloud and search open their models here, so threads, graph optimisation and errors are the
same everywhere and a time measured by the search is a time of what is deployed.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common.errors import ModelError, ParityError

Array = NDArray[Any]

# Nothing about a user's models or machine leaves it.
onnxruntime.disable_telemetry_events()


@dataclass(frozen=True)
class Port:
    """One input or output of a model; a dimension is None where it may vary (the batch)."""

    name: str
    shape: tuple[int | None, ...]


def runtime_name(threads: int) -> str:
    """What models run in here, as latency tables call it."""
    return f"onnxruntime {onnxruntime.__version__} {platform.machine()} x{threads}"


class Model:
    """An opened ONNX model.

    Args:
        source: A file, or the model's bytes.
        threads: Threads within one run; runs may be called from several threads at once.
        weights: Tensors by name that the model expects from outside.

    Raises:
        ModelError: If the runtime cannot read or build the model.
    """

    def __init__(
        self,
        source: Path | bytes,
        *,
        threads: int = 1,
        weights: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning workers would steal the core that the encoder, or another process, needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        name = source if isinstance(source, Path) else "model in memory"
        # The session keeps no copy of what it did not repack: they live as long as it does.
        self._weights = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
        options.add_external_initializers(list(weights), self._weights)
        try:
            self._session = onnxruntime.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                options,
                providers=["CPUExecutionProvider"],
            )
        except _RUNTIME_ERRORS as error:
            raise ModelError(f"{name}: ONNX Runtime refuses it: {_one_line(error)}") from error
        self.inputs = tuple(_port(node) for node in self._session.get_inputs())
        self.outputs = tuple(_port(node) for node in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once; outputs in the model's order.

        Raises:
            ModelError: If an input's name, type or shape is not the model's.
        """
        try:
            outputs: Sequence[Array] = self._session.run(None, dict(inputs))
        except _RUN_ERRORS as error:
            raise ModelError(f"ONNX Runtime failed: {_one_line(error)}") from error
        return list(outputs)


def check_parity(actual: Sequence[Array], expected: Sequence[Array], *, what: str) -> None:
    """Require integer tensors to agree: never off by more than 1, equal in at least 99.9 %.

    Raises:
        ParityError: If they do not. The usual cause is a CPU whose 8-bit products saturate.
    """
    for got, want in zip(actual, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ParityError(
                f"{what}: expected {want.dtype}{want.shape}, "
                f"the runtime gave {got.dtype}{got.shape}"
            )
        off = np.abs(got.astype(np.int32) - want.astype(np.int32))
        equal = float(np.mean(off == 0))
        if equal < 0.999 or off.max(initial=0) > 1:
            raise ParityError(
                f"{what}: this machine's runtime does not reproduce the head: {equal:.3%} of the "
                f"elements are equal (99.9 % needed), the largest difference is {off.max()} (1 "
                "allowed); if its CPU has no VNNI or dot-product instructions, search again for a "
                "device whose weights keep to 7 bits: --device this-machine-no-vnni"
            )


def _port(node: Any) -> Port:
    return Port(node.name, tuple(d if isinstance(d, int) else None for d in node.shape))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


_state = onnxruntime.capi.onnxruntime_pybind11_state
_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
_RUN_ERRORS: tuple[type[Exception], ...] = (*_RUNTIME_ERRORS, ValueError)
