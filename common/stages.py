"""Stages of a frame, in the order of the path: the one list of their names."""

from typing import Final

EDGE: Final[tuple[str, ...]] = ("preprocess", "head", "encode")
"""Computed on the edge, for every plan that sends something."""

CLOUD: Final[tuple[str, ...]] = ("decode", "tail", "postprocess")
"""Computed in the cloud; `postprocess` on the edge if the plan has no tail."""

COMPUTED: Final[tuple[str, ...]] = (*EDGE, *CLOUD)
"""Computed somewhere: these have rows in latency tables."""

PREDICTED: Final[tuple[str, ...]] = (*EDGE, "uplink", "rtt", *CLOUD)
"""Parts of a predicted latency, which is their sum."""

OBSERVED: Final[tuple[str, ...]] = (
    "capture",
    *EDGE,
    "uplink",
    "queue",
    *CLOUD,
    "downlink",
    "other",
    "total",
)
"""Parts of a served frame; `other` is hand-overs between threads, `total` excludes capture."""

SERVED: Final[tuple[str, ...]] = ("queue", *CLOUD, "total")
"""Observed by the cloud by itself; `total` is the time that it held the frame."""
