"""OpenVINO: a runtime for Intel's and other CPUs, of the extra `[openvino]`."""

import platform
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ModelError
from common.runtime.base import NO_WEIGHTS, Array, Port
from common.runtime.onnx_weights import put_weights

# Nothing about a user's models or machine leaves it: OpenVINO reports every import to its makers
# if it finds this package, and does without if it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402 - see above
from openvino.frontend import FrontEndManager  # noqa: E402
from openvino.frontend.onnx import ConversionExtension  # noqa: E402

from common.runtime.openvino_integers import mark_quantized, quantize_linear  # noqa: E402


class OpenVino:
    """OpenVINO on the CPU; see `common.runtime.base.Runtime`."""

    def name(self, threads: int) -> str:
        """Name in latency tables."""
        version = openvino.get_version().partition("-")[0]
        return f"openvino {version} {platform.machine()} x{threads}"

    def open(
        self,
        model: Path | bytes,
        *,
        weights: Mapping[str, Array] = NO_WEIGHTS,
        threads: int = 1,
        parallel_runs: int = 1,
    ) -> "OpenVinoSession":
        """Open a model."""
        return OpenVinoSession(model, weights, threads, parallel_runs)


class OpenVinoSession:
    """A model opened in OpenVINO; see `common.runtime.base.Session`."""

    def __init__(
        self,
        model: Path | bytes,
        weights: Mapping[str, Array],
        threads: int,
        parallel_runs: int,
    ) -> None:
        name = model if isinstance(model, Path) else "model in memory"
        with _mapped_errors(f"{name}: OpenVINO refuses it"):
            graph = _read(model, weights)
            mark_quantized(graph)
            self._compiled = _core().compile_model(graph, "CPU", _options(threads, parallel_runs))
            self.inputs = tuple(_port(each) for each in graph.inputs)
            self.outputs = tuple(_port(each) for each in graph.outputs)
        if not self.outputs:
            raise ModelError(f"{name}: OpenVINO refuses it: it has no outputs")
        self._types = [each.get_element_type().to_dtype() for each in self._compiled.inputs]
        # A request holds the buffers of one run: there are as many as there were runs at once.
        self._idle: deque[Any] = deque()

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once; outputs in the model's order."""
        values = self._checked(inputs)
        with _mapped_errors("OpenVINO failed"):
            try:
                request = self._idle.pop()
            except IndexError:
                request = self._compiled.create_infer_request()
            results = request.infer(values, share_inputs=True, share_outputs=False)
            outputs = [results[index] for index in range(len(self.outputs))]
        self._idle.append(request)
        return outputs

    def _checked(self, inputs: Mapping[str, Array]) -> dict[int, Array]:
        """Inputs by number, of the types and shapes that the model has: OpenVINO would convert."""
        known = [port.name for port in self.inputs]
        if set(inputs) != set(known):
            raise ModelError(f"OpenVINO failed: expected inputs {known}, got {sorted(inputs)}")
        values = {}
        for index, (port, dtype) in enumerate(zip(self.inputs, self._types, strict=True)):
            array = inputs[port.name]
            if array.dtype != dtype or not _fits(array.shape, port.shape):
                raise ModelError(
                    f"OpenVINO failed: {port.name}: expected {dtype}{port.shape}, "
                    f"got {array.dtype}{array.shape}"
                )
            values[index] = np.ascontiguousarray(array)
        return values


@cache
def _core() -> Any:
    return openvino.Core()


def _read(model: Path | bytes, weights: Mapping[str, Array]) -> Any:
    """Read an ONNX model, and nothing else that OpenVINO also reads."""
    reader = FrontEndManager().load_by_framework("onnx")
    reader.add_extension(ConversionExtension("QuantizeLinear", quantize_linear))
    if weights:
        model = put_weights(model.read_bytes() if isinstance(model, Path) else model, weights)
    source = str(model) if isinstance(model, Path) else BytesIO(model)
    return reader.convert(reader.load(source))


def _options(threads: int, parallel_runs: int) -> dict[str, object]:
    """Options for the latency of single runs, within the threads that they may have."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": parallel_runs,
        "INFERENCE_NUM_THREADS": threads * parallel_runs,
        # Pinned threads would sit on a core that another process may be given.
        "ENABLE_CPU_PINNING": False,
        # By default it computes in bfloat16 where the CPU has it.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _port(output: Any) -> Port:
    shape = output.get_partial_shape()
    dimensions = tuple(d.get_length() if d.is_static else None for d in shape)
    return Port(output.get_any_name(), dimensions)


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (None, got) for got, want in zip(shape, expected, strict=True)
    )


@contextmanager
def _mapped_errors(what: str) -> Iterator[None]:
    """Raise what OpenVINO raises as `ModelError`; everything else passes."""
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package != openvino.__name__ and not isinstance(error, (RuntimeError, OSError)):
            raise
        raise ModelError(f"{what}: {_cause(str(error))}") from error


def _cause(message: str) -> str:
    """Extract the cause, on one line, from a message of OpenVINO.

    The places in its sources that a message begins with, and the advice or stack that follows the
    cause, are left out; so is the end of a long message.
    """
    lines = [_PLACE.sub("", line) for line in message[:_MOST_READ].splitlines()]
    cause = _ADVICE.sub("", " ".join(" ".join(lines).split()))
    return cause if len(cause) <= _LONGEST else f"{cause[:_LONGEST]} ..."


_LONGEST = 500
_MOST_READ = 4096
_PLACE = re.compile(
    r"^Exception from \S+:\d+:$|^Check '.*' failed at \S+:\d+:$|"
    r"^FrontEnd API failed with \w+:$"
)
_ADVICE = re.compile(r" (At:|To facilitate the conversion) .*$")
