"""Frames in sequence: the edge looks back at what the cloud has answered, and recovers."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.reference_frames import FRAMES, ReferenceFrames
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.errors import CloudUnavailableError, StaleReferenceError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import reference_to
from edge.detector import Detector, find_plan
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport
from tests import tiny
from tests.in_process import impatient
from tests.planes import answer_to


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return tiny.build(folder, [tiny.SPLIT_VIDEO, tiny.SPLIT_CONTEXT])


class Cloud:
    """A cloud in this process whose streams can be cut, and which may lose answers."""

    def __init__(self, bundle: Bundle) -> None:
        admission = Admission(ThreadPoolExecutor(1), 1)
        self.plane = DataPlane(Tails(bundle), admission)
        self.frames: list[pb.Frame] = []
        self.rejections = 0
        self.deaf = False
        self.streams: list[InProcessTransport] = []

    def connect(self) -> InProcessTransport:
        references = ReferenceFrames()

        def handle(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
            if message.WhichOneof("kind") == "hello":
                digests = self.plane.tails.digests
                return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=digests))]
            if self.deaf:
                return []
            sent = pb.Frame()
            sent.CopyFrom(message.frame)
            self.frames.append(sent)
            made = answer_to(self.plane, message, time.perf_counter(), references)
            self.rejections += made.HasField("rejection")
            return [made]

        self.streams.append(InProcessTransport(handle))
        return self.streams[-1]

    @property
    def looked_back(self) -> list[bool]:
        return [frame.payloads[0].data[:1] == b"\2" for frame in self.frames]


@pytest.fixture
def cloud(bundle: Bundle) -> Cloud:
    return Cloud(bundle)


@pytest.fixture
def detector(bundle: Bundle, cloud: Cloud) -> Detector:
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    return Detector(bundle, CloudClient(cloud.connect, hello, answer_timeout_s=60))


def sequence(count: int) -> list[np.ndarray]:
    """Images that differ from each other in a few rows."""
    images = []
    for index in range(count):
        image = tiny.image().copy()
        image[index : index + 2] = 255 - image[index : index + 2]
        images.append(image)
    return images


def alone(detector: Detector, image: np.ndarray) -> np.ndarray:
    """What a plan that codes every frame alone finds."""
    plan = find_plan(detector.bundle, tiny.SPLIT_CONTEXT)
    return detector.detect(image, plan).detections.boxes


def test_every_frame_but_the_first_looks_back(detector: Detector, cloud: Cloud) -> None:
    found = [detector.detect(image).detections.boxes for image in sequence(5)]

    assert cloud.looked_back == [False, True, True, True, True]
    assert [frame.reference.frame_id for frame in cloud.frames] == [0, 1, 2, 3, 4]
    for image, boxes in zip(sequence(5), found, strict=True):
        np.testing.assert_array_equal(boxes, alone(detector, image))


def test_a_frame_that_is_never_answered_is_never_looked_back_at(
    detector: Detector, cloud: Cloud
) -> None:
    first, second, third, fourth = sequence(4)
    detector.detect(first)
    cloud.deaf = True
    with impatient(detector), pytest.raises(CloudUnavailableError):
        detector.detect(second)
    cloud.deaf = False
    boxes = detector.detect(third).detections.boxes
    detector.detect(fourth)

    assert [frame.reference.frame_id for frame in cloud.frames] == [0, 1, 3]
    assert cloud.looked_back == [False, True, True]
    assert cloud.rejections == 0
    np.testing.assert_array_equal(boxes, alone(detector, third))


def test_a_new_stream_costs_one_frame_that_stands_alone(detector: Detector, cloud: Cloud) -> None:
    first, second, third = sequence(3)
    detector.detect(first)
    cloud.streams[0].close()
    boxes = detector.detect(second).detections.boxes
    detector.detect(third)

    assert len(cloud.streams) == 2
    assert cloud.rejections == 1
    assert cloud.looked_back == [False, True, False, True]
    np.testing.assert_array_equal(boxes, alone(detector, second))


def test_an_unlike_picture_stands_alone(detector: Detector, cloud: Cloud) -> None:
    detector.detect(tiny.image(1))
    detector.detect(np.zeros_like(tiny.image()))

    assert cloud.looked_back == [False, False]


def test_a_plan_without_sequences_names_no_reference(detector: Detector, cloud: Cloud) -> None:
    plan = find_plan(detector.bundle, tiny.SPLIT_CONTEXT)
    for image in sequence(2):
        detector.detect(image, plan)

    assert not any(frame.HasField("reference") for frame in cloud.frames)


class TestHistory:
    SYMBOLS = (np.zeros((1, 1, 1), np.uint8),)

    @staticmethod
    def frame(frame_id: int, crc32: int = 5) -> pb.Frame:
        return pb.Frame(
            frame_id=frame_id, plan_digest=bytes(32), payloads=[pb.Payload(data=b"x", crc32=crc32)]
        )

    def after(self, earlier: pb.Frame) -> pb.Frame:
        frame = self.frame(99)
        frame.reference.CopyFrom(reference_to(earlier))
        return frame

    def test_it_finds_what_it_kept(self) -> None:
        references = ReferenceFrames()
        references.keep(self.frame(1), self.SYMBOLS)
        assert references.find(self.after(self.frame(1))) is self.SYMBOLS
        assert references.find(self.frame(2)) is None

    def test_it_forgets_the_oldest(self) -> None:
        references = ReferenceFrames()
        for frame_id in range(1, FRAMES + 2):
            references.keep(self.frame(frame_id), self.SYMBOLS)
        references.find(self.after(self.frame(2)))
        with pytest.raises(StaleReferenceError, match="send this one without"):
            references.find(self.after(self.frame(1)))

    def test_the_same_number_of_another_stream_is_another_frame(self) -> None:
        references = ReferenceFrames()
        references.keep(self.frame(1, crc32=5), self.SYMBOLS)
        with pytest.raises(StaleReferenceError):
            references.find(self.after(self.frame(1, crc32=6)))

    def test_another_plan_s_frame_is_not_found(self) -> None:
        references = ReferenceFrames()
        other = self.frame(1)
        other.plan_digest = b"\1" * 32
        references.keep(other, self.SYMBOLS)
        with pytest.raises(StaleReferenceError):
            references.find(self.after(other))
