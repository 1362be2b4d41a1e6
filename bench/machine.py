"""Description of the machine and software of a measurement, for its record."""

import os
import platform
from importlib import metadata

from common.codec import context
from common.machine import cpu_name

_PACKAGES = ("grpcio", "numpy", "onnxruntime", "pillow", "pycocotools", "torch")


def machine() -> dict[str, object]:
    """CPU, cores, system and the versions that matter for speed."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "context_coder": "compiled" if context.FAST else "interpreted",
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
