"""Bootstrap 95 % intervals of measurements (Efron 1979), from a fixed seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES, _SEED = 2000, 0

Values = NDArray[np.float64]


def percentile(values: Values, percent: float) -> dict[str, float]:
    """Percentile under "value", its interval from "low" to "high"."""
    picks = np.random.default_rng(_SEED).integers(0, len(values), (_RESAMPLES, len(values)))
    resampled = np.percentile(values[picks], percent, axis=1)
    return _with_ends(float(np.percentile(values, percent)), resampled)


def ratio(ours: Values, theirs: Values, of: Callable[..., Any] = np.median) -> dict[str, float]:
    """Ratio of two statistics under "value", its interval from "low" to "high".

    Args:
        ours: One value for each round.
        theirs: One value for each round; if as many as `ours`, both are resampled as pairs.
        of: The statistic, such as `numpy.mean`.
    """
    rng = np.random.default_rng(_SEED)
    picks = others = rng.integers(0, len(ours), (_RESAMPLES, len(ours)))
    if len(ours) != len(theirs):
        others = rng.integers(0, len(theirs), (_RESAMPLES, len(theirs)))
    resampled = of(ours[picks], axis=1) / of(theirs[others], axis=1)
    return _with_ends(float(of(ours) / of(theirs)), resampled)


def _with_ends(value: float, resampled: Values) -> dict[str, float]:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {"value": value, "low": float(low), "high": float(high)}
