"""Check of the arrays' cycles against SCALE-Sim, which simulates cycle by cycle (extra `sim`).

SCALE-Sim lays out every operand that enters the array, one row of a matrix for each cycle: the rows
are the cycles. Memory is not compared: it has three interfaces of a bandwidth each, all busy while
the array computes, where our DMA is one and takes turns with the array.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from bench.harness import Result
from common.errors import SettingsError
from common.progress import Reporter
from search.prediction.accelerators import (
    EYERISS_LIKE,
    TPU_LIKE,
    Accelerator,
    MatrixProduct,
)

MOST_BYTES = 1 << 30
"""Memory of the operands of a layer that is simulated; of a larger one they would not fit."""
_DOUBLE = 8


def compared_cycles(products: Iterable[MatrixProduct], reporter: Reporter) -> list[Result]:
    """Our cycles over SCALE-Sim's, for every shape of a layer.

    Args:
        products: The layers; of groups, which SCALE-Sim does not know, one stands for all.
        reporter: Reports progress.

    Raises:
        SettingsError: If SCALE-Sim is not installed.
    """
    shapes = {replace(product, groups=1) for product in products}
    progress = reporter.stage("comparing with SCALE-Sim")
    designs = (EYERISS_LIKE, TPU_LIKE)
    results = []
    for count, design in enumerate(designs):
        small = [shape for shape in shapes if _operand_bytes(design, shape) <= MOST_BYTES]
        ratios = [design.product_cycles(each) / simulated_cycles(design, each) for each in small]
        results.append(
            {
                "array": f"{design.name}, {design.rows} x {design.columns}",
                "layers": len(small),
                "least": float(min(ratios)),
                "median": float(np.median(ratios)),
                "most": float(max(ratios)),
                "left_out": len(shapes) - len(small),
            }
        )
        progress(count + 1, len(designs))
    return results


def simulated_cycles(design: Accelerator, product: MatrixProduct) -> int:
    """Cycles that SCALE-Sim takes for one product with weights that stay in place.

    Raises:
        SettingsError: If SCALE-Sim is not installed.
    """
    config, array = _scale_sim()
    config.set_arr_dims(design.rows, design.columns)
    config.set_dataflow("ws")
    config.force_valid()
    array.set_params(
        config_obj=config,
        ifmap_op_mat=np.zeros((product.pixels, product.taps)),
        filter_op_mat=np.zeros((product.taps, product.channels)),
        ofmap_op_mat=np.zeros((product.pixels, product.channels)),
    )
    array.create_ifmap_demand_mat()
    return len(array.ifmap_demand_matrix)


def _scale_sim() -> tuple[Any, Any]:
    """A configuration and an array of SCALE-Sim."""
    try:
        from scalesim.compute.systolic_compute_ws import systolic_compute_ws
        from scalesim.scale_config import scale_config
    except ImportError as error:
        raise SettingsError(
            f"SCALE-Sim cannot be loaded ({error}): pip install 'splitpoint[sim]'"
        ) from error
    return scale_config(), systolic_compute_ws()


def _operand_bytes(design: Accelerator, product: MatrixProduct) -> int:
    entering = design.product_cycles(product) * design.rows
    return 2 * _DOUBLE * (entering + product.pixels * product.taps)
