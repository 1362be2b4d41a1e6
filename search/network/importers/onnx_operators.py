"""The operators of ONNX, as nodes of the graph: one reader for each, in one table.

A reader raises `UnsupportedCallError` for settings that the graph has no entry for. Settings that
moved from attributes to inputs with later versions of ONNX are read from where they are.
"""

from collections.abc import Mapping
from types import MappingProxyType

from search.network.importers import onnx_functions, onnx_movement, onnx_pooling, onnx_products
from search.network.importers.calls import Call, GraphBuilder, Reader

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **onnx_functions.READERS,
        **onnx_movement.READERS,
        **onnx_pooling.READERS,
        **onnx_products.READERS,
    }
)


def read_call(call: Call, graph: GraphBuilder) -> None:
    """Import one call.

    Raises:
        UnsupportedCallError: If the graph has no entry for it.
    """
    reader = READERS.get(call.op)
    if reader is None:
        raise call.unsupported("no such operator here")
    reader(call, graph)
