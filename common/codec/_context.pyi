import numpy as np
from numpy.typing import NDArray

def encode(
    symbols: NDArray[np.uint8],
    previous: NDArray[np.uint8] | None,
    weights: NDArray[np.int8],
    before: NDArray[np.int8],
    bias: NDArray[np.int16],
    magnitudes: NDArray[np.uint8],
    cumulative: NDArray[np.uint16],
    shape: tuple[int, ...],
    limit: int,
) -> bytes | None: ...
def decode(
    data: bytes,
    previous: NDArray[np.uint8] | None,
    weights: NDArray[np.int8],
    before: NDArray[np.int8],
    bias: NDArray[np.int16],
    magnitudes: NDArray[np.uint8],
    cumulative: NDArray[np.uint16],
    shape: tuple[int, ...],
    limit: int,
) -> bytes: ...
