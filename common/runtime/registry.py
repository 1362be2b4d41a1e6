"""The table of runtimes: a user's name for one -> the library, loaded when it is asked for.

A runtime other than the default is an extra of the same name: `pip install 'splitpoint[NAME]'`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from common.choices import one_of
from common.errors import SettingsError
from common.runtime.base import NO_WEIGHTS, Array, Runtime, Session

DEFAULT_RUNTIME: Final = "onnxruntime"
"""Runtime that the search computes with; its integer kernels define what heads reproduce."""


def _onnxruntime() -> Runtime:
    from common.runtime.onnx_runtime import OnnxRuntime

    return OnnxRuntime()


def _openvino() -> Runtime:
    from common.runtime.openvino_runtime import OpenVino

    return OpenVino()


RUNTIMES: Final[Mapping[str, Callable[[], Runtime]]] = {
    DEFAULT_RUNTIME: _onnxruntime,
    "openvino": _openvino,
}


@cache
def runtime_named(name: str) -> Runtime:
    """Load the runtime of this name.

    Raises:
        SettingsError: If there is none of that name, or its package is not installed.
    """
    load = RUNTIMES[one_of(name, RUNTIMES, "runtime")]
    try:
        return load()
    except ImportError as error:
        raise SettingsError(
            f"runtime {name} cannot be loaded ({error}): pip install 'splitpoint[{name}]'"
        ) from error


def open_model(
    model: Path | bytes,
    *,
    weights: Mapping[str, Array] = NO_WEIGHTS,
    threads: int = 1,
    parallel_runs: int = 1,
    runtime: str = DEFAULT_RUNTIME,
) -> Session:
    """Open a model in the runtime of this name; see `common.runtime.base.Runtime.open`.

    Raises:
        ModelError: If the runtime cannot read or build the model.
        SettingsError: If there is no such runtime here.
    """
    return runtime_named(runtime).open(
        model, weights=weights, threads=threads, parallel_runs=parallel_runs
    )


def runtime_name(threads: int, runtime: str = DEFAULT_RUNTIME) -> str:
    """Name in latency tables of the runtime that is registered by this name.

    Raises:
        SettingsError: If there is no such runtime here.
    """
    return runtime_named(runtime).name(threads)
