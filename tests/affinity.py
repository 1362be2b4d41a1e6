"""A smaller machine for a while: the calling thread is bound to one core."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def one_core() -> Iterator[None]:
    """Bind the thread to one core of several; skips the test where there is but one."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs Linux and two cores")
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usual)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)
