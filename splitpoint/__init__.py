"""Splitpoint: one neural network on two machines, the cut chosen by measurement.

    search(...)                     a bundle of plans, from a model, images, an edge and a link
    evaluate(bundle, images)        the accuracy of its plans, as deployed
    CloudServer(bundle)             the cloud: tails over gRPC, whole images over REST
    EdgeDetector(bundle, cloud)     the edge: images in, results out
    open_bundle(path)               a bundle, checked

Names are loaded when they are first used: an edge needs neither the search nor the cloud.
"""

import importlib
from typing import TYPE_CHECKING, Any

from common.bundle.bundle import Bundle, open_bundle
from common.errors import (
    AddressInUseError,
    BundleError,
    BundleVersionError,
    CalibrationError,
    CloudFailedError,
    CloudOverloadedError,
    CloudUnavailableError,
    ImageError,
    ImageTooLargeError,
    ModelError,
    NoFeasiblePlanError,
    OverloadedError,
    ParityError,
    PayloadError,
    PlanNotHeldError,
    SettingsError,
    SourceError,
    SplitpointError,
    StaleReferenceError,
    StoreError,
    UnknownPlanError,
    WeightsError,
    WrongTaskError,
)
from common.tasks.classification import Classes
from common.tasks.detections import Detections
from common.tasks.tensors import Tensors
from common.version import __version__

if TYPE_CHECKING:
    from splitpoint.cloud_server import CloudServer
    from splitpoint.edge_detector import EdgeDetector
    from splitpoint.evaluating import evaluate
    from splitpoint.evaluation import Evaluation
    from splitpoint.searching import search

__all__ = [
    "AddressInUseError",
    "Bundle",
    "BundleError",
    "BundleVersionError",
    "CalibrationError",
    "Classes",
    "CloudFailedError",
    "CloudOverloadedError",
    "CloudServer",
    "CloudUnavailableError",
    "Detections",
    "EdgeDetector",
    "Evaluation",
    "ImageError",
    "ImageTooLargeError",
    "ModelError",
    "NoFeasiblePlanError",
    "OverloadedError",
    "ParityError",
    "PayloadError",
    "PlanNotHeldError",
    "SettingsError",
    "SourceError",
    "SplitpointError",
    "StaleReferenceError",
    "StoreError",
    "Tensors",
    "UnknownPlanError",
    "WeightsError",
    "WrongTaskError",
    "__version__",
    "evaluate",
    "open_bundle",
    "search",
]

_LATER = {
    "CloudServer": "splitpoint.cloud_server",
    "EdgeDetector": "splitpoint.edge_detector",
    "Evaluation": "splitpoint.evaluation",
    "evaluate": "splitpoint.evaluating",
    "search": "splitpoint.searching",
}


def __getattr__(name: str) -> Any:
    """Load a name that needs a part of its own."""
    if name not in _LATER:
        raise AttributeError(f"module 'splitpoint' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
