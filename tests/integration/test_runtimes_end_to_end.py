"""An edge and a cloud that both run on OpenVINO serve frames, as they do on the default runtime."""

from pathlib import Path

import httpx
import numpy as np
import pytest

import splitpoint
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from tests import tiny

RUNTIME = "openvino"


def edges_of(cloud: splitpoint.CloudServer) -> list[dict[str, object]]:
    edges: list[dict[str, object]] = httpx.get(f"{cloud.rest_url}/v1/edges").json()["edges"]
    return edges


@pytest.mark.parametrize("plan", tiny.ALL_PLANS)
def test_a_frame_is_served(tmp_path: Path, plan: str) -> None:
    bundle = tmp_path / "bundle"
    tiny.build(bundle)
    found = {}
    for runtime in (DEFAULT_RUNTIME, RUNTIME):
        with (
            splitpoint.CloudServer(bundle, runtime=runtime) as cloud,
            splitpoint.EdgeDetector(
                bundle, cloud.grpc_address, plan=plan, runtime=runtime, edge_id="camera"
            ) as edge,
        ):
            edge.check_ready()
            found[runtime] = edge.detect(tiny.image())
            if plan != tiny.EDGE_ONLY:
                (known,) = edges_of(cloud)
                assert known["runtime"] == runtime_name(1, runtime)
    here, there = found[RUNTIME], found[DEFAULT_RUNTIME]
    assert here.plan.name == plan
    assert len(here.detections.boxes) > 0
    assert here.uplink_bytes == there.uplink_bytes
    np.testing.assert_array_equal(here.detections.classes, there.detections.classes)
    np.testing.assert_allclose(here.detections.boxes, there.detections.boxes, atol=0.01)
    np.testing.assert_allclose(here.detections.scores, there.detections.scores, atol=1e-4)


def test_a_head_that_is_not_reproduced_is_refused_and_says_what_to_try(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    tiny.build(bundle, wrong_vector=True)
    with (
        splitpoint.CloudServer(bundle, runtime=RUNTIME) as cloud,
        splitpoint.EdgeDetector(bundle, cloud.grpc_address, runtime=RUNTIME) as edge,
    ):
        assert edge.detect(tiny.image()).plan.name == tiny.CLOUD_ONLY  # the one without a head
    with pytest.raises(splitpoint.ParityError, match="try --runtime onnxruntime"):
        splitpoint.EdgeDetector(bundle, plan=tiny.EDGE_ONLY, runtime=RUNTIME)
