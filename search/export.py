"""Deployment: the plans that a search kept, written as a bundle.

Each head is written with a vector, one calibration image and the codes that the integer reference
computes for it, and is checked against it here, before anybody downloads it. Tails share one file
of weights.
"""

import io
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import BundleWriter
from common.bundle.manifest import Head, HeadOutput, Manifest, Plan, Search, Tail, network_digest
from common.bundle.packed_weights import unpack_weights
from common.codec.spec import WireTensor
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from common.tasks.registry import AnyTask
from common.version import __version__
from search.cache import digest
from search.constraints import stored
from search.network.cuts import Cut
from search.network.graph import IMAGE, Graph
from search.prediction.candidates import Candidate, RankedCandidate, context_file
from search.quantization import integer
from search.quantization.export import SharedWeights, head_model, packed_weights, tail_model
from search.quantization.heads import Heads
from search.reports.html import Bits, html
from search.reports.markdown import as_json, markdown
from search.request import SearchResult

_MODELS = "models"


def write_plans(
    out: Path,
    networks: Heads,
    task: AnyTask,
    vector_image: NDArray[np.uint8],
    weights_sha256: str,
    result: SearchResult,
) -> Manifest:
    """Write a bundle with the plans of `result.kept`.

    Args:
        out: Folder to write; replaced if it is a bundle.
        networks: The integer networks.
        task: What the network is for.
        vector_image: (1, 3, H, W) uint8, the input of the parity vectors.
        weights_sha256: Digest of the network's weights file.
        result: The search's result.

    Raises:
        ParityError: If this machine does not reproduce a head.
        BundleError: If `out` may not be replaced.
    """
    writer = BundleWriter(out)
    try:
        return _write(writer, networks, task, vector_image, weights_sha256, result)
    except BaseException:
        writer.discard()
        raise


def _write(
    writer: BundleWriter,
    networks: Heads,
    task: AnyTask,
    vector_image: NDArray[np.uint8],
    weights_sha256: str,
    result: SearchResult,
) -> Manifest:
    graph = networks.network.graph
    weights = SharedWeights.of(graph.nodes)
    # By digest: two heads, or two tails, may share a name.
    heads: dict[str, Head] = {}
    tails: dict[str, Tail] = {}
    names = _Names()
    network, plans = network_digest(weights_sha256, task), []
    for ranked in result.kept:
        cut, head, tail, rest = ranked.candidate.cut, None, None, None
        if cut.head:
            key = networks.digest(cut)
            if key not in heads:
                name = names.of(_slug(cut.label), key)
                heads[key] = _add_head(
                    writer, networks, cut, vector_image, name, result.request.runtime
                )
            head = heads[key]
        if cut.tail:
            key = _tail_digest(cut)
            if key not in tails:
                name = names.of(f"tail {_tail_name(cut)}", key).removeprefix("tail ")
                tails[key] = _add_tail(writer, graph, cut, weights, name)
            tail = tails[key]
        if cut.rest:
            rest = _add_rest(writer, graph, cut)
        wire = _add_contexts(writer, ranked.candidate)
        plans.append(_plan(ranked, network, head, wire, tail or rest, result))
    writer.add("report.md", markdown(result).encode())
    writer.add("report.html", html(result, _bits(networks, result)).encode())
    writer.add("report.json", json.dumps(as_json(result), indent=1).encode())
    request = result.request
    return writer.finish(
        task=task,
        search=Search(
            model=request.model,
            weights_sha256=weights_sha256,
            device=request.device.name,
            uplink_bps=request.link.uplink_bps,
            rtt_ms=request.link.rtt_ms,
            limits=stored(request.constraints),
            calibration_images=result.calibration_images,
            accuracy_metric=result.metric,
            software_version=__version__,
            edge_slowdown=result.cost_model.edge.slowdown,
            cloud_slowdown=result.cost_model.cloud.slowdown,
            reduced_range=request.device.reduced_range,
            video=request.video,
            cloud_threads=request.cloud_threads,
            iou_threshold=request.iou_threshold,
            max_detections=request.max_detections,
            classes=request.classes,
            top=request.top,
        ),
        plans=tuple(plans),
    )


def _bits(networks: Heads, result: SearchResult) -> Bits:
    """Bits of the weights and outputs of the convolutions of each plan's head."""
    return {
        ranked.candidate.name: {
            node.name: (network.convs[node.name].bits, network.grids[node.name].bits)
            for node in ranked.candidate.cut.head
            if node.name in network.convs
        }
        for ranked in result.kept
        for network in [networks.of(ranked.candidate.cut)]
    }


class _Names:
    """Unique file names: the one wished for, plus a piece of the digest if it is taken."""

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}

    def of(self, wished: str, key: str) -> str:
        """Name of the artefact with this digest."""
        name = wished
        if self._taken.get(name, key) != key:
            name = f"{wished}-{key[:8]}"
        self._taken[name] = key
        return name


def _tail_digest(cut: Cut) -> str:
    """Digest of a tail: its tensors, and its weights if these were adapted."""
    adapted = cut.tail if cut.adapted_to else ()
    return digest(cut.tensors, [(node.name, node.weight, node.bias) for node in adapted])


def _add_head(
    writer: BundleWriter,
    networks: Heads,
    cut: Cut,
    image: NDArray[np.uint8],
    name: str,
    runtime: str,
) -> Head:
    network = networks.of(cut)
    file, vector = f"{_MODELS}/head-{name}.onnx", f"vectors/{name}"
    packed = packed_weights(network, cut.codes)
    model = head_model(network, cut.codes, outside_weights=packed is not None)
    unpacked = {} if packed is None else unpack_weights(packed, file)
    expected = integer.run(network, image, cut.codes)
    made = open_model(model, weights=unpacked, runtime=runtime).run({IMAGE: image})
    check_parity(made, expected, what=f"head of {cut.name}", runtime=runtime)
    writer.add(file, model)
    weights = None if packed is None else f"{_MODELS}/head-{name}.weights"
    if packed is not None and weights is not None:
        writer.add(weights, packed)
    writer.add(f"{vector}/input.npy", _npy(image))
    for index, codes in enumerate(expected):
        writer.add(f"{vector}/output-{index}.npy", _npy(codes))
    weight_bytes, activation_bytes = networks.memory_bytes(cut)
    return Head(
        file=file,
        weights=weights,
        outputs=tuple(
            HeadOutput(
                name=name,
                shape=network.graph[name].shape,
                scale=network.grids[name].scale,
                zero_point=network.grids[name].zero_point,
            )
            for name in cut.codes
        ),
        weight_bytes=weight_bytes,
        peak_activation_bytes=activation_bytes,
        bits={n.name: network.convs[n.name].bits for n in cut.head if n.name in network.convs},
        vector=vector,
    )


def _add_tail(
    writer: BundleWriter, graph: Graph, cut: Cut, weights: SharedWeights, name: str
) -> Tail:
    if cut.adapted_to:
        weights = SharedWeights.of(cut.tail, f"weights-{name}.bin")
    file, weights_file = f"{_MODELS}/tail-{name}.onnx", f"{_MODELS}/{weights.file}"
    writer.add(file, tail_model(graph, cut, weights))
    if weights_file not in writer:
        writer.add(weights_file, weights.data)
    return Tail(file=file, files=(weights_file,))


def _add_rest(writer: BundleWriter, graph: Graph, cut: Cut) -> Tail:
    """Write what the edge-only plans run behind their heads; it is the same for all of them."""
    weights = SharedWeights.of(cut.rest, "weights-rest.bin")
    file, weights_file = f"{_MODELS}/rest.onnx", f"{_MODELS}/{weights.file}"
    if file not in writer:
        writer.add(file, tail_model(graph, cut, weights))
        if weights.data:
            writer.add(weights_file, weights.data)
    return Tail(file=file, files=(weights_file,) if weights.data else ())


def _tail_name(cut: Cut) -> str:
    return f"{_slug(cut.label)}-{_slug(cut.adapted_to)}" if cut.adapted_to else cut.name


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _add_contexts(writer: BundleWriter, candidate: Candidate) -> tuple[WireTensor, ...]:
    """Write the context models of a candidate; returns its wire with the files' names."""
    for model in (*candidate.contexts, *candidate.contexts_after):
        if context_file(model) not in writer:
            writer.add(context_file(model), model.to_bytes())
    return candidate.named_wire


def _plan(
    ranked: RankedCandidate,
    network: str,
    head: Head | None,
    wire: tuple[WireTensor, ...],
    behind: Tail | None,
    result: SearchResult,
) -> Plan:
    candidate = ranked.candidate
    edge_only = candidate.codec is None
    drop = result.drop(ranked)
    certain = math.isfinite(ranked.most_lost)
    prediction = ranked.predicted.model_copy(
        update={
            "accuracy": ranked.accuracy,
            "accuracy_drop": drop,
            "accuracy_drop_upper": ranked.most_lost if certain else None,
            "judged_images": ranked.judged_on,
            "judged_by": result.judged_by,
        }
    )
    return Plan(
        name=candidate.name,
        network=network,
        cut=candidate.cut.tensors,
        head=head,
        wire=wire,
        codec=candidate.codec,
        tail=None if edge_only else behind,
        rest=behind if edge_only else None,
        predicted=prediction,
    )


def _npy(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
