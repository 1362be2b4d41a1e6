"""Fixtures that every test may use."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores among them: more threads of torch would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from common.errors import SplitpointError
from search.zoo.download import fetch
from search.zoo.registry import MODELS

# Speed is never asserted in a test, not by Hypothesis either.
settings.register_profile("splitpoint", deadline=None)
settings.load_profile("splitpoint")

# Unit tests that search, fit or wait; `make check` leaves them out, and all integration tests.
SLOW = {
    "test_allocate",
    "test_balance",
    "test_baselines",
    "test_bench_networks",
    "test_coco_agreement",
    "test_connections",
    "test_constraints",
    "test_deadline_probes",
    "test_fit_context",
    "test_image_costs",
    "test_lapq",
    "test_low_bit",
    "test_performance",
    "test_public_api",
    "test_refine",
    "test_rest_load",
    "test_rounding",
    "test_runtimes",
    "test_screening",
    "test_search",
    "test_separation",
    "test_stages",
    "test_strategies",
    "test_table_calibration",
    "test_weights",
    "test_zoo",
}

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of test data ($SPLITPOINT_DATA, or shared/data beside the checkout)."""
    configured = os.environ.get("SPLITPOINT_DATA")
    folder = Path(configured) if configured else REPOSITORY.parent / "shared" / "data"
    if not (folder / "coco_val").is_dir():
        pytest.skip(f"no test data in {folder}: set SPLITPOINT_DATA to a folder with coco_val/")
    return folder


@pytest.fixture(scope="session")
def tiny_weights() -> Path:
    """The published weights of YOLOv3-tiny, fetched and verified."""
    try:
        return fetch(MODELS["yolov3-tiny"].weights)
    except SplitpointError as error:
        pytest.skip(f"the weights cannot be fetched: {error}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make check` leaves out."""
    for item in items:
        if item.path.stem in SLOW or item.path.parent.name == "integration":
            item.add_marker(pytest.mark.slow)
