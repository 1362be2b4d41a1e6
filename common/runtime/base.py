"""The seam between the product and the libraries that run ONNX models.

    Runtime.open(model, weights, threads) -> Session.run(inputs) -> outputs

Edge, cloud and search know these two classes and the names in `common.runtime.registry`; which
library is behind them is nobody else's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]

NO_WEIGHTS: Final[Mapping[str, Array]] = MappingProxyType({})


@dataclass(frozen=True)
class Port:
    """One input or output of a model; a dimension is None where it may vary (the batch)."""

    name: str
    shape: tuple[int | None, ...]


class Session(Protocol):
    """An opened model; may be run from several threads at once."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """Inputs in the model's order."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """Outputs in the model's order."""

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once; outputs in the model's order, which no later run overwrites.

        Raises:
            ModelError: If an input's name, type or shape is not the model's.
        """


class Runtime(Protocol):
    """A library that runs ONNX models on this machine's CPU."""

    def name(self, threads: int) -> str:
        """Name in latency tables: the registered name, the version, the machine, the threads."""

    def open(
        self,
        model: Path | bytes,
        *,
        weights: Mapping[str, Array] = NO_WEIGHTS,
        threads: int = 1,
        parallel_runs: int = 1,
    ) -> Session:
        """Open a model.

        Args:
            model: A file, or the model's bytes.
            weights: Tensors by name that the model expects from outside.
            threads: Threads within one run.
            parallel_runs: Runs that are wanted at once; more of them may wait for each other.

        Raises:
            ModelError: If the runtime cannot read or build the model.
        """
