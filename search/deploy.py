"""Deployment: the plans that a search kept, written as a bundle.

Each head is written with a vector, one calibration image and the codes that the integer reference
computes for it, and is checked against it here, before anybody downloads it. Tails share one file
of weights.
"""

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.bundle import BundleWriter
from common.detections import DetectorSpec
from common.manifest import Head, HeadOutput, Manifest, Plan, Search, Tail
from common.runtime import Model, check_parity
from search import integer
from search.candidates import Judged, predict
from search.cuts import Cut
from search.formats import edge_memory
from search.graph import IMAGE
from search.onnx_models import WEIGHTS_FILE, SharedWeights, head_model, tail_model
from search.quantize import QuantizedGraph
from search.report import as_json, markdown
from search.request import Found

_MODELS = "models"


def write_plans(
    out: Path,
    network: QuantizedGraph,
    detector: DetectorSpec,
    vector_image: NDArray[np.uint8],
    weights_sha256: str,
    found: Found,
) -> Manifest:
    """Write a bundle with the plans of `found.kept`.

    Args:
        out: Folder to write; replaced if it is a bundle.
        network: The quantized network.
        detector: How its maps become boxes.
        vector_image: (1, 3, H, W) uint8, the input of the parity vectors.
        weights_sha256: Digest of the network's weights file.
        found: The search's result.

    Raises:
        ParityError: If this machine does not reproduce a head.
        BundleError: If `out` may not be replaced.
    """
    writer = BundleWriter(out)
    try:
        return _write(writer, network, detector, vector_image, weights_sha256, found)
    except BaseException:
        writer.discard()
        raise


def _write(
    writer: BundleWriter,
    network: QuantizedGraph,
    detector: DetectorSpec,
    vector_image: NDArray[np.uint8],
    weights_sha256: str,
    found: Found,
) -> Manifest:
    weights = SharedWeights.of(network.graph)
    heads: dict[str, Head] = {}
    tails: dict[str, Tail] = {}
    for cut in {j.candidate.cut.name: j.candidate.cut for j in found.kept}.values():
        if cut.head:
            heads[cut.name] = _add_head(writer, network, cut, vector_image)
        if cut.tail:
            tails[cut.name] = _add_tail(writer, network, cut, weights)
    plans = tuple(
        _plan(judged, heads.get(judged.candidate.cut.name), tails, found) for judged in found.kept
    )
    writer.add("report.md", markdown(found).encode())
    writer.add("report.json", json.dumps(as_json(found), indent=1).encode())
    request = found.request
    return writer.finish(
        detector=detector,
        search=Search(
            model=request.model,
            weights_sha256=weights_sha256,
            device=request.device.name,
            uplink_bps=request.link.uplink_bps,
            rtt_ms=request.link.rtt_ms,
            edge_memory_bytes=request.edge_memory_bytes,
            max_drop=request.max_drop,
            calibration_images=found.calibration_images,
            accuracy_metric=found.metric,
            software_version=request.software_version,
        ),
        plans=plans,
    )


def _add_head(
    writer: BundleWriter, network: QuantizedGraph, cut: Cut, image: NDArray[np.uint8]
) -> Head:
    file, vector = f"{_MODELS}/head-{cut.name}.onnx", f"vectors/{cut.name}"
    model = head_model(network, cut.tensors)
    expected = integer.run(network, image, cut.tensors)
    check_parity(Model(model).run({IMAGE: image}), expected, what=f"head of {cut.name}")
    writer.add(file, model)
    writer.add(f"{vector}/input.npy", _npy(image))
    for index, codes in enumerate(expected):
        writer.add(f"{vector}/output-{index}.npy", _npy(codes))
    weight_bytes, activation_bytes = edge_memory(network, cut)
    return Head(
        file=file,
        outputs=tuple(
            HeadOutput(
                name=name,
                shape=network.graph[name].shape,
                scale=network.grids[name].scale,
                zero_point=network.grids[name].zero_point,
            )
            for name in cut.tensors
        ),
        weight_bytes=weight_bytes,
        peak_activation_bytes=activation_bytes,
        bits={node.name: 8 for node in cut.head if node.name in network.convs},
        vector=vector,
    )


def _add_tail(
    writer: BundleWriter, network: QuantizedGraph, cut: Cut, weights: SharedWeights
) -> Tail:
    file, weights_file = f"{_MODELS}/tail-{cut.name}.onnx", f"{_MODELS}/{WEIGHTS_FILE}"
    writer.add(file, tail_model(network.graph, cut, weights))
    if weights_file not in writer:
        writer.add(weights_file, weights.data)
    return Tail(file=file, files=(weights_file,))


def _plan(judged: Judged, head: Head | None, tails: dict[str, Tail], found: Found) -> Plan:
    candidate = judged.candidate
    accuracy = judged.accuracy or 0.0
    prediction = predict(candidate, judged.times, found.world).model_copy(
        update={"accuracy": accuracy, "accuracy_drop": found.reference_accuracy - accuracy}
    )
    return Plan(
        name=candidate.name,
        cut=candidate.cut.tensors,
        head=head,
        wire=candidate.wire,
        codec=candidate.codec,
        tail=tails.get(candidate.cut.name),
        predicted=prediction,
    )


def _npy(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
