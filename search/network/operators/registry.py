"""The table of operators: what the importers make, and all that the search understands."""

from collections.abc import Mapping
from types import MappingProxyType

from common.errors import ModelError
from search.network.graph import Graph, Node
from search.network.operators.base import Operator
from search.network.operators.convolution import Conv, ConvTranspose, Scale
from search.network.operators.elementwise import (
    Add,
    Binary,
    Multiply,
    PRelu,
    Softmax,
    StandaloneActivation,
    WithConstant,
)
from search.network.operators.movement import (
    Concat,
    Gather,
    Pad,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Upsample,
)
from search.network.operators.normalisation import LocalResponse
from search.network.operators.opaque import OPAQUE, OPAQUE_OUTPUT, Opaque, OpaqueOutput
from search.network.operators.pooling import AveragePooling, MaxPooling
from search.network.operators.products import ProductOfTensors

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "activation": StandaloneActivation(),
        "add": Add(),
        "average_pool": AveragePooling(),
        "concat": Concat(),
        "constant": WithConstant(),
        "conv": Conv(),
        "conv_transpose": ConvTranspose(),
        "divide": Binary("Div"),
        "gather": Gather(),
        "local_response": LocalResponse(),
        "matrix_product": ProductOfTensors(),
        "max_pool": MaxPooling(),
        "maximum": Binary("Max"),
        "minimum": Binary("Min"),
        "multiply": Multiply(),
        OPAQUE: Opaque(),
        OPAQUE_OUTPUT: OpaqueOutput(),
        "pad": Pad(),
        "prelu": PRelu(),
        "reshape": Reshape(),
        "resize": Resize(),
        "scale": Scale(),
        "slice": Slice(),
        "softmax": Softmax(),
        "subtract": Binary("Sub"),
        "transpose": Transpose(),
        "upsample": Upsample(),
    }
)


def operator_of(node: Node) -> Operator:
    """Look a node's operator up.

    Raises:
        ModelError: If there is none of that name.
    """
    try:
        return OPERATORS[node.op]
    except KeyError:
        raise ModelError(f"{node.name}: no operator {node.op}") from None


def makes_values(node: Node) -> bool:
    """Whether a node's output has a grid of its own; others move the values of their input."""
    return node.op != "input" and operator_of(node).makes_values


def may_be_in_head(node: Node) -> bool:
    """Whether a head may hold a node, all that it reads being in it."""
    operator = operator_of(node)
    return operator.computes_in_torch and operator.refusal(node) is None


def computable_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes that torch can compute, from the image on."""
    computable: set[str] = set()
    for node in graph.nodes:
        alone = node.op == "input" or operator_of(node).computes_in_torch
        if alone and computable.issuperset(node.inputs):
            computable.add(node.name)
    return tuple(node for node in graph.nodes if node.name in computable)


def last_computable(graph: Graph) -> tuple[str, ...]:
    """The tensors that losses compare: the network's outputs, or the last that torch can compute.

    Those are what operators that are taken over as they are read, and outputs in front of them.
    """
    computable = {node.name for node in computable_nodes(graph)}
    if computable.issuperset(graph.outputs):
        return graph.outputs
    return tuple(
        node.name
        for node in graph.nodes
        if node.name in computable
        and (node.name in graph.outputs or not computable.issuperset(graph.consumers[node.name]))
    )


def maker_of(graph: Graph, name: str) -> str:
    """Name of the node whose grid a tensor has: its own, or the source of the moved values."""
    node = graph[name]
    while not makes_values(node) and node.inputs:
        node = graph[node.inputs[0]]
    return node.name
