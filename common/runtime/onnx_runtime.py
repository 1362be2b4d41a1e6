"""ONNX Runtime: the default runtime, and the one place that touches it."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime

from common.errors import ModelError
from common.runtime.base import NO_WEIGHTS, Array, Port

# Nothing about a user's models or machine leaves it.
onnxruntime.disable_telemetry_events()


class OnnxRuntime:
    """ONNX Runtime on the CPU; see `common.runtime.base.Runtime`."""

    def name(self, threads: int) -> str:
        """Name in latency tables."""
        return f"onnxruntime {onnxruntime.__version__} {platform.machine()} x{threads}"

    def open(
        self,
        model: Path | bytes,
        *,
        weights: Mapping[str, Array] = NO_WEIGHTS,
        threads: int = 1,
        parallel_runs: int = 1,  # noqa: ARG002 - each run has its caller's thread, so all may
    ) -> "OnnxSession":
        """Open a model."""
        return OnnxSession(model, weights, threads)


class OnnxSession:
    """A model opened in ONNX Runtime; see `common.runtime.base.Session`."""

    def __init__(self, model: Path | bytes, weights: Mapping[str, Array], threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning workers would steal the core that the encoder, or another process, needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        name = model if isinstance(model, Path) else "model in memory"
        # The session keeps no copy of what it did not repack: they live as long as it does.
        self._weights = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
        options.add_external_initializers(list(weights), self._weights)
        with _mapped_errors(f"{name}: ONNX Runtime refuses it"):
            self._session = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        self.inputs = tuple(_port(node) for node in self._session.get_inputs())
        self.outputs = tuple(_port(node) for node in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once; outputs in the model's order."""
        with _mapped_errors("ONNX Runtime failed", ValueError):
            outputs: Sequence[Array] = self._session.run(None, dict(inputs))
        return list(outputs)


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
