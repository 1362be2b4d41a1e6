"""Parity: a head runs only on a machine whose runtime computes what the search evaluated."""

from collections.abc import Sequence

import numpy as np

from common.errors import ParityError
from common.runtime.base import Array
from common.runtime.registry import DEFAULT_RUNTIME


def check_parity(
    actual: Sequence[Array],
    expected: Sequence[Array],
    *,
    what: str,
    runtime: str = DEFAULT_RUNTIME,
) -> None:
    """Require integer tensors to agree: never off by more than 1, equal in at least 99.9 %.

    Args:
        actual: Outputs of this machine's runtime.
        expected: Outputs of the reference.
        what: Name of the head, for the error.
        runtime: Registered name of the runtime, for the error.

    Raises:
        ParityError: If they do not. The usual cause is a CPU whose 8-bit products saturate.
    """
    for got, want in zip(actual, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            raise ParityError(
                f"{what}: expected {want.dtype}{want.shape}, "
                f"the runtime gave {got.dtype}{got.shape}"
            )
        off = np.abs(got.astype(np.int32) - want.astype(np.int32))
        equal = float(np.mean(off == 0))
        if equal < 0.999 or off.max(initial=0) > 1:
            raise ParityError(
                f"{what}: this machine's runtime does not reproduce the head: {equal:.3%} of the "
                f"elements are equal (99.9 % needed), the largest difference is {off.max()} (1 "
                f"allowed); {_advice(runtime)}"
            )


def _advice(runtime: str) -> str:
    other = "" if runtime == DEFAULT_RUNTIME else f"try --runtime {DEFAULT_RUNTIME}; "
    return (
        f"{other}if its CPU has no VNNI or dot-product instructions, search again for a device "
        "whose weights keep to 7 bits: --device this-machine-no-vnni"
    )
