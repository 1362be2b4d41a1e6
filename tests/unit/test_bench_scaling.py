"""The cloud under many edges: what a stream does, and how turns add up."""

from collections.abc import Iterable
from threading import Event

import pytest

from bench.scale import many_edges
from bench.scale.many_edges import Load, Turn, choose, stream, summary
from common.errors import SplitpointError
from common.rpc import splitpoint_pb2 as pb
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport
from tests import tiny

PLAN = bytes(range(32))
FRAMES = [pb.Frame(plan_digest=PLAN, image_width=width) for width in (10, 20, 30)]


class Cloud:
    """Greets, answers or refuses frames, and ends the load after a number of them."""

    def __init__(self, load: Load, frames: int, *, refuses: bool = False) -> None:
        self.seen: list[pb.Frame] = []
        self._load, self._frames, self._refuses = load, frames, refuses

    def client(self) -> CloudClient:
        hello = pb.Hello(edge_id="test", bundle_digest=bytes(32))
        return CloudClient(lambda: InProcessTransport(self._handle), hello)

    def _handle(self, message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        if message.WhichOneof("kind") == "hello":
            return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=[PLAN]))]
        self.seen.append(message.frame)
        if len(self.seen) == self._frames:
            self._load.ended.set()
        frame_id = message.frame.frame_id
        if self._refuses:
            return [pb.CloudMessage(rejection=pb.Rejection(frame_id=frame_id, message="no"))]
        return [pb.CloudMessage(result=pb.Result(frame_id=frame_id))]


def load_of(streams: int) -> Load:
    return Load([Event() for _ in range(streams)])


def test_a_stream_sends_one_picture_after_the_other_from_its_own_on() -> None:
    load = load_of(3)
    cloud = Cloud(load, frames=4)

    stream(cloud.client(), 2, FRAMES, load)

    assert [frame.image_width for frame in cloud.seen] == [30, 10, 20, 30]
    assert len(load.answered) == 4
    assert load.had_one[2].is_set()
    assert not load.had_one[0].is_set()


def test_a_stream_tells_the_cloud_what_its_frames_took() -> None:
    load = load_of(1)
    cloud = Cloud(load, frames=2)

    stream(cloud.client(), 0, FRAMES, load)

    (reported,) = cloud.seen[1].measured
    assert reported.frame_id == cloud.seen[0].frame_id
    assert reported.times.total_us >= reported.times.round_trip_us > 0


def test_frames_are_shared_and_stay_as_they_were() -> None:
    load = load_of(1)

    stream(Cloud(load, frames=3).client(), 0, FRAMES, load)

    assert all(not frame.frame_id and not frame.measured for frame in FRAMES)


def test_a_refused_frame_is_counted_and_the_stream_goes_on() -> None:
    load = load_of(1)
    cloud = Cloud(load, frames=2, refuses=True)

    stream(cloud.client(), 0, FRAMES, load)

    assert len(cloud.seen) == len(load.errors) == 2
    assert not load.answered


def test_turns_of_a_plan_add_up() -> None:
    turns = [
        Turn(2.0, [10.0, 20.0], [], 30.0),
        Turn(2.0, [30.0, 40.0], ["away"], 50.0),
    ]

    found = summary(turns)

    assert (found["frames"], found["failed"], found["errors"]) == (4, 1, ["away"])
    assert (found["frames_per_s"], found["p50_ms"]) == (1.0, 25.0)
    assert found["cloud_cpu_ms"] == 20.0


def test_a_plan_without_any_answer_has_no_times() -> None:
    found = summary([Turn(2.0, [], ["away", "away"], 1.0)])

    assert found == {"frames": 0, "failed": 2, "errors": ["away"]}


def test_a_bundle_without_a_jpeg_upload_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bundle = tiny.build(tmp_path_factory.mktemp("bundle") / "b", [tiny.SPLIT_CONTEXT])

    with pytest.raises(SplitpointError, match="a JPEG upload"):
        choose(bundle)


def test_what_failed_is_shown_too() -> None:
    rows = [
        {"streams": 1, "kind": "split", **summary([Turn(2.0, [12.5], [], 5.0)])},
        {"streams": 2, "kind": "JPEG", **summary([Turn(2.0, [], ["away"], 5.0)])},
    ]
    result = {
        "rows": [row | {"cloud_resident_mib": 70.0} for row in rows],
        "plans": {"split": "conv_8 context", "JPEG": "image jpeg q75"},
        "frame_bytes": {"split": 4000, "JPEG": 23_000},
    }

    first, *_, split, jpeg = many_edges.section(result)

    assert "image jpeg q75, 23,000 bytes" in first
    assert split == "| 1 | split | 0.5 | 12 | 12 | 5.0 | 70 | 0 |"
    assert jpeg == "| 2 | JPEG |  |  |  |  | 70 | 1 |"
