"""Correction factors of predictions, estimated online in the log domain, and prediction intervals.

    log(measured / predicted) = side + plan + noise

A side's multiplier applies to all its plans (the machine is slower than its profile, the server is
loaded); a plan's residual applies to that plan alone. Both are random walks, filtered by two scalar
Kalman gains that share each innovation, which is clipped at a few standard deviations so that one
outlier does not move them. A plan that has not been served for long is thus corrected by the
observations of the others.

`Coverage` turns past errors into intervals by adaptive conformal inference (Gibbs and Candes,
"Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021): the level follows the
observed coverage, so that the intervals stay calibrated under drift.
"""

import bisect
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_MEAN_PRIOR = 0.5**2
_OWN_PRIOR = 0.1**2
_NOISE_PRIOR = 0.15**2
_MEAN_DRIFT = 0.008**2
_OWN_DRIFT = 0.004**2
_CLIP = 2.5
_NOISE_GAIN = 0.05
_DRIFT_SLACK = 0.75
_DRIFT_ALARM = 6.0
_MOST_LOG = 7.0

_ENOUGH = 20
_UNKNOWN = 1.5
_ADAPTATION = 0.02
_BEYOND = 1.25


@dataclass
class _Residual:
    value: float = 0.0
    variance: float = _OWN_PRIOR
    n: int = 0


class Correction:
    """Estimated ratio of measurements to predictions on one side. Not thread-safe.

    Attributes:
        n: Measurements so far.
        drifts: Number of drift alarms; each resets the multiplier's variance to its prior.
    """

    def __init__(self) -> None:
        self._mean, self._variance = 0.0, _MEAN_PRIOR
        self._noise = _NOISE_PRIOR
        self._own: dict[Hashable, _Residual] = {}
        self._up = self._down = 0.0
        self.n = 0
        self.drifts = 0

    @property
    def multiplier(self) -> float:
        """The side's factor, without any plan's residual."""
        return math.exp(self._mean)

    def factor(self, key: Hashable) -> float:
        """Return the factor to multiply a plan's prediction by."""
        own = self._own.get(key)
        return math.exp(self._mean + (0.0 if own is None else own.value))

    def spread(self, key: Hashable) -> float:
        """Return the standard deviation of the logarithm of `factor`."""
        own = self._own.get(key)
        return math.sqrt(self._variance + (_OWN_PRIOR if own is None else own.variance))

    def served(self, key: Hashable) -> int:
        """Return the number of measurements of one plan."""
        own = self._own.get(key)
        return 0 if own is None else own.n

    def update(self, key: Hashable, measured: float, predicted: float) -> None:
        """Update from one measurement.

        Args:
            key: The plan.
            measured: The observed time, or number of bytes.
            predicted: Its uncorrected prediction.
        """
        if measured <= 0 or predicted <= 0:
            return
        own = self._own.setdefault(key, _Residual())
        error = math.log(measured / predicted) - self._mean - own.value
        error = min(max(error, -_MOST_LOG), _MOST_LOG)
        noise = self._noise
        deviation = math.sqrt(self._variance + own.variance + noise)
        self._watch(error / deviation)
        known = self._variance + own.variance
        clipped = min(max(error, -_CLIP * deviation), _CLIP * deviation)
        self._share(own, clipped, noise)
        seen = max(clipped**2 - known, (0.01) ** 2)
        self._noise += _NOISE_GAIN * (seen - self._noise)
        self.n += 1
        own.n += 1

    def seed(self, key: Hashable, measured: float, predicted: float, n: int) -> None:
        """Initialise a plan not served yet from the median of n earlier measurements."""
        if measured <= 0 or predicted <= 0 or self.served(key):
            return
        own = self._own.setdefault(key, _Residual())
        error = math.log(measured / predicted) - self._mean - own.value
        error = min(max(error, -_MOST_LOG), _MOST_LOG)
        self._share(own, error, self._noise / n)

    def step(self) -> None:
        """Advance the random walks by one frame: variances grow towards their priors."""
        self._variance = min(self._variance + _MEAN_DRIFT, _MEAN_PRIOR)
        for own in self._own.values():
            own.variance = min(own.variance + _OWN_DRIFT, _OWN_PRIOR)

    def _share(self, own: _Residual, error: float, noise: float) -> None:
        """Divide an error between side and plan, in proportion to their variances."""
        total = self._variance + own.variance + noise
        side, plan = self._variance / total, own.variance / total
        self._mean += error * side
        own.value += error * plan
        self._variance *= 1 - side
        own.variance *= 1 - plan

    def _watch(self, surprise: float) -> None:
        """Detect drift by Page's cumulative sums: errors that keep one sign are no noise."""
        bounded = min(max(surprise, -3.0), 3.0)
        self._up = max(0.0, self._up + bounded - _DRIFT_SLACK)
        self._down = max(0.0, self._down - bounded - _DRIFT_SLACK)
        if max(self._up, self._down) > _DRIFT_ALARM:
            self._up = self._down = 0.0
            self._variance = _MEAN_PRIOR
            self.drifts += 1


class Coverage:
    """Prediction intervals by adaptive conformal inference. Not thread-safe.

    Args:
        level: Nominal coverage: share of measurements that are to lie inside.
        window: Number of recent errors kept, for each plan and for all together.
    """

    def __init__(self, level: float = 0.95, window: int = 200) -> None:
        self._target = 1 - level
        self._miss = self._target
        self._window = window
        self._all = _Recent(window)
        self._own: dict[Hashable, _Recent] = {}
        self.covered = 0
        self.n = 0

    def interval(self, key: Hashable) -> tuple[float, float]:
        """Return the interval's lower and upper bound, as factors of the prediction."""
        ordered = self._own.get(key, self._all).ordered
        if len(ordered) < _ENOUGH:
            ordered = self._all.ordered
        if len(ordered) < _ENOUGH:
            return 1 / _UNKNOWN, _UNKNOWN
        tail = min(max(self._miss / 2, 0.0), 0.5)
        # Of n errors, the next one lies beyond the outermost with probability 1 / (n + 1) a side.
        rank = tail * (len(ordered) + 1) - 1
        low, high = _at(ordered, rank), _at(ordered, len(ordered) - 1 - rank)
        return math.exp(low), math.exp(high)

    def update(self, key: Hashable, measured: float, predicted: float) -> None:
        """Update from one measurement; `predicted` is the value that `interval` applied to."""
        if measured <= 0 or predicted <= 0:
            return
        error = math.log(measured / predicted)
        low, high = self.interval(key)
        inside = low <= measured / predicted <= high
        if len(self._all.ordered) >= _ENOUGH:
            self.n += 1
            self.covered += inside
            self._miss += _ADAPTATION * (self._target - (not inside))
            self._miss = min(max(self._miss, 0.0), 0.5)
        self._all.add(error)
        self._own.setdefault(key, _Recent(self._window)).add(error)


class _Recent:
    """The last values, kept sorted for fast quantiles."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, value: float) -> None:
        """Add a value; the oldest is dropped beyond the window."""
        self._values.append(value)
        bisect.insort(self.ordered, value)
        if len(self._values) > self._most:
            del self.ordered[bisect.bisect_left(self.ordered, self._values.popleft())]


def _at(ordered: Sequence[float], rank: float) -> float:
    """Interpolate at a rank; past the ends, up to 1.25 x the end's distance from the median."""
    last = len(ordered) - 1
    middle = ordered[last // 2]
    if rank < 0:
        return middle + (ordered[0] - middle) * (1 + (_BEYOND - 1) * min(1.0, -rank))
    if rank > last:
        return middle + (ordered[last] - middle) * (1 + (_BEYOND - 1) * min(1.0, rank - last))
    below = int(rank)
    part = rank - below
    above = min(below + 1, last)
    return ordered[below] * (1 - part) + ordered[above] * part
