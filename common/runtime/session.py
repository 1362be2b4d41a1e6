"""Running an ONNX model with ONNX Runtime: the one place that touches it.

Edge, cloud and search open their models here, so threads, graph optimisation and errors are the
same everywhere and a time measured by the search is a time of what is deployed.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """Name of the runtime in latency tables: its version, the machine, the threads."""
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
        with _mapped_errors(f"{name}: ONNX Runtime refuses it"):
            self._session = onnxruntime.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                options,
                providers=["CPUExecutionProvider"],
            )
        self.inputs = tuple(_port(node) for node in self._session.get_inputs())
        self.outputs = tuple(_port(node) for node in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once; outputs in the model's order.

        Raises:
            ModelError: If an input's name, type or shape is not the model's.
        """
        with _mapped_errors("ONNX Runtime failed", ValueError):
            outputs: Sequence[Array] = self._session.run(None, dict(inputs))
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


@contextmanager
def _mapped_errors(what: str, *others: type[Exception]) -> Iterator[None]:
    """Raise what ONNX Runtime raises as `ModelError`.

    Its exceptions derive from `Exception` alone and have no public name, so they are recognised by
    the package that they come from; everything else passes, but for `others`.
    """
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package != onnxruntime.__name__ and not isinstance(error, others):
            raise
        raise ModelError(f"{what}: {_cause(str(error))}") from error


def _cause(message: str) -> str:
    """Extract the cause, on one line, from a message of ONNX Runtime.

    The middle of a long message is left out: a message begins with a node or a place in C++ and
    ends with the cause.
    """
    newer = _newer_than_runtime(message[-_MOST_READ:])
    if newer is not None:
        return newer
    message = _PREFIX.sub("", " ".join(message.split()))
    if len(message) <= _HEAD + _TAIL:
        return message
    return f"{message[:_HEAD]} ... {message[-_TAIL:]}"


def _newer_than_runtime(message: str) -> str | None:
    """Remedy for a model of a newer format or operator set than this runtime reads, else None."""
    here = f"this ONNX Runtime ({onnxruntime.__version__}) reads"
    cure = "install a newer onnxruntime, or export the model again with an older one"
    if found := _NEWER_IR.search(message):
        return f"it has ONNX IR version {found[1]}, {here} at most {found[2]}: {cure}"
    if found := _NEWER_OPSET.search(message):
        came, domain, most = found.groups()
        return f"it needs opset {came} of {domain}, {here} at most {most}: {cure}"
    return None


_HEAD, _TAIL = 100, 400
_MOST_READ = 4096
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : (\w+ : )?")
_NEWER_IR = re.compile(r"IR version: (\d+), max supported IR version: (\d+)")
_NEWER_OPSET = re.compile(r"Opset (\d+) is under .* domain (\S+) is till opset (\d+)", re.DOTALL)
