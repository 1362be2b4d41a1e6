from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EdgeMessage(_message.Message):
    __slots__ = ("hello", "frame", "report", "probe", "switch", "profile")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    frame: Frame
    report: Report
    probe: Probe
    switch: Switch
    profile: ProfileReport
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., switch: _Optional[_Union[Switch, _Mapping]] = ..., profile: _Optional[_Union[ProfileReport, _Mapping]] = ...) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("welcome", "result", "rejection", "order")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    result: Result
    rejection: Rejection
    order: ProfileOrder
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., rejection: _Optional[_Union[Rejection, _Mapping]] = ..., order: _Optional[_Union[ProfileOrder, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("edge_id", "bundle_digest", "software_version", "device", "runtime", "threads", "instance")
    EDGE_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    edge_id: str
    bundle_digest: bytes
    software_version: str
    device: str
    runtime: str
    threads: int
    instance: int
    def __init__(self, edge_id: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., software_version: _Optional[str] = ..., device: _Optional[str] = ..., runtime: _Optional[str] = ..., threads: _Optional[int] = ..., instance: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("software_version", "plan_digests", "learned")
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    software_version: str
    plan_digests: _containers.RepeatedScalarFieldContainer[bytes]
    learned: _containers.RepeatedCompositeFieldContainer[Learned]
    def __init__(self, software_version: _Optional[str] = ..., plan_digests: _Optional[_Iterable[bytes]] = ..., learned: _Optional[_Iterable[_Union[Learned, _Mapping]]] = ...) -> None: ...

class Learned(_message.Message):
    __slots__ = ("plan_digest", "n", "edge_us", "cloud_us", "uplink_bytes")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    EDGE_US_FIELD_NUMBER: _ClassVar[int]
    CLOUD_US_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    n: int
    edge_us: int
    cloud_us: int
    uplink_bytes: int
    def __init__(self, plan_digest: _Optional[bytes] = ..., n: _Optional[int] = ..., edge_us: _Optional[int] = ..., cloud_us: _Optional[int] = ..., uplink_bytes: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("frame_id", "plan_digest", "image_width", "image_height", "payloads", "score_threshold", "reference", "measured", "iou_threshold", "max_detections", "classes")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    IOU_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MAX_DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    plan_digest: bytes
    image_width: int
    image_height: int
    payloads: _containers.RepeatedCompositeFieldContainer[Payload]
    score_threshold: float
    reference: Reference
    measured: _containers.RepeatedCompositeFieldContainer[Measurement]
    iou_threshold: float
    max_detections: int
    classes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, frame_id: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., image_width: _Optional[int] = ..., image_height: _Optional[int] = ..., payloads: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ..., score_threshold: _Optional[float] = ..., reference: _Optional[_Union[Reference, _Mapping]] = ..., measured: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., iou_threshold: _Optional[float] = ..., max_detections: _Optional[int] = ..., classes: _Optional[_Iterable[int]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("frame_id", "crc32")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    crc32: int
    def __init__(self, frame_id: _Optional[int] = ..., crc32: _Optional[int] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("data", "crc32")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    crc32: int
    def __init__(self, data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("frame_id", "plan_digest", "detections", "classes", "tensors", "times", "measured")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    plan_digest: bytes
    detections: Detections
    classes: Classes
    tensors: Tensors
    times: EdgeTimes
    measured: _containers.RepeatedCompositeFieldContainer[Measurement]
    def __init__(self, frame_id: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ..., tensors: _Optional[_Union[Tensors, _Mapping]] = ..., times: _Optional[_Union[EdgeTimes, _Mapping]] = ..., measured: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("frame_id", "padding")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    padding: bytes
    def __init__(self, frame_id: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

class Switch(_message.Message):
    __slots__ = ("plan_digest", "reason", "uplink_bps", "rtt_us", "expected", "burst_bytes")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BPS_FIELD_NUMBER: _ClassVar[int]
    RTT_US_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BURST_BYTES_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    reason: str
    uplink_bps: float
    rtt_us: int
    expected: _containers.RepeatedCompositeFieldContainer[Expectation]
    burst_bytes: int
    def __init__(self, plan_digest: _Optional[bytes] = ..., reason: _Optional[str] = ..., uplink_bps: _Optional[float] = ..., rtt_us: _Optional[int] = ..., expected: _Optional[_Iterable[_Union[Expectation, _Mapping]]] = ..., burst_bytes: _Optional[int] = ...) -> None: ...

class Expectation(_message.Message):
    __slots__ = ("plan_digest", "latency_us", "fixed_us", "uplink_bytes")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    FIXED_US_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    latency_us: int
    fixed_us: int
    uplink_bytes: int
    def __init__(self, plan_digest: _Optional[bytes] = ..., latency_us: _Optional[int] = ..., fixed_us: _Optional[int] = ..., uplink_bytes: _Optional[int] = ...) -> None: ...

class ProfileOrder(_message.Message):
    __slots__ = ("order_id", "plan_digests", "budget_ms")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    plan_digests: _containers.RepeatedScalarFieldContainer[bytes]
    budget_ms: int
    def __init__(self, order_id: _Optional[int] = ..., plan_digests: _Optional[_Iterable[bytes]] = ..., budget_ms: _Optional[int] = ...) -> None: ...

class ProfileReport(_message.Message):
    __slots__ = ("order_id", "rows", "error")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    order_id: int
    rows: _containers.RepeatedCompositeFieldContainer[StageTimes]
    error: str
    def __init__(self, order_id: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[StageTimes, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("plan_digest", "stage", "n", "median_us", "p90_us", "low_us", "high_us")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_US_FIELD_NUMBER: _ClassVar[int]
    P90_US_FIELD_NUMBER: _ClassVar[int]
    LOW_US_FIELD_NUMBER: _ClassVar[int]
    HIGH_US_FIELD_NUMBER: _ClassVar[int]
    plan_digest: bytes
    stage: str
    n: int
    median_us: int
    p90_us: int
    low_us: int
    high_us: int
    def __init__(self, plan_digest: _Optional[bytes] = ..., stage: _Optional[str] = ..., n: _Optional[int] = ..., median_us: _Optional[int] = ..., p90_us: _Optional[int] = ..., low_us: _Optional[int] = ..., high_us: _Optional[int] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("frame_id", "times")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    times: EdgeTimes
    def __init__(self, frame_id: _Optional[int] = ..., times: _Optional[_Union[EdgeTimes, _Mapping]] = ...) -> None: ...

class EdgeTimes(_message.Message):
    __slots__ = ("capture_us", "preprocess_us", "head_us", "encode_us", "round_trip_us", "postprocess_us", "total_us", "uplink_us", "uplink_bps", "rtt_us")
    CAPTURE_US_FIELD_NUMBER: _ClassVar[int]
    PREPROCESS_US_FIELD_NUMBER: _ClassVar[int]
    HEAD_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_US_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    UPLINK_US_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BPS_FIELD_NUMBER: _ClassVar[int]
    RTT_US_FIELD_NUMBER: _ClassVar[int]
    capture_us: int
    preprocess_us: int
    head_us: int
    encode_us: int
    round_trip_us: int
    postprocess_us: int
    total_us: int
    uplink_us: int
    uplink_bps: float
    rtt_us: int
    def __init__(self, capture_us: _Optional[int] = ..., preprocess_us: _Optional[int] = ..., head_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., round_trip_us: _Optional[int] = ..., postprocess_us: _Optional[int] = ..., total_us: _Optional[int] = ..., uplink_us: _Optional[int] = ..., uplink_bps: _Optional[float] = ..., rtt_us: _Optional[int] = ...) -> None: ...

class Detections(_message.Message):
    __slots__ = ("boxes", "scores", "classes")
    BOXES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    boxes: _containers.RepeatedScalarFieldContainer[float]
    scores: _containers.RepeatedScalarFieldContainer[float]
    classes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, boxes: _Optional[_Iterable[float]] = ..., scores: _Optional[_Iterable[float]] = ..., classes: _Optional[_Iterable[int]] = ...) -> None: ...

class Classes(_message.Message):
    __slots__ = ("indices", "scores")
    INDICES_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, indices: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class Tensors(_message.Message):
    __slots__ = ("ranks", "sides", "data")
    RANKS_FIELD_NUMBER: _ClassVar[int]
    SIDES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    sides: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, ranks: _Optional[_Iterable[int]] = ..., sides: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("frame_id", "detections", "classes", "tensors", "times")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    DETECTIONS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    detections: Detections
    classes: Classes
    tensors: Tensors
    times: CloudTimes
    def __init__(self, frame_id: _Optional[int] = ..., detections: _Optional[_Union[Detections, _Mapping]] = ..., classes: _Optional[_Union[Classes, _Mapping]] = ..., tensors: _Optional[_Union[Tensors, _Mapping]] = ..., times: _Optional[_Union[CloudTimes, _Mapping]] = ...) -> None: ...

class CloudTimes(_message.Message):
    __slots__ = ("decode_us", "queue_us", "tail_us", "postprocess_us", "total_us", "arrived_us")
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    TAIL_US_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_US_FIELD_NUMBER: _ClassVar[int]
    decode_us: int
    queue_us: int
    tail_us: int
    postprocess_us: int
    total_us: int
    arrived_us: int
    def __init__(self, decode_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., tail_us: _Optional[int] = ..., postprocess_us: _Optional[int] = ..., total_us: _Optional[int] = ..., arrived_us: _Optional[int] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("frame_id", "reason", "message", "retry_after_ms")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Rejection.Reason]
        REASON_UNKNOWN_PLAN: _ClassVar[Rejection.Reason]
        REASON_BAD_PAYLOAD: _ClassVar[Rejection.Reason]
        REASON_INTERNAL: _ClassVar[Rejection.Reason]
        REASON_STALE_REFERENCE: _ClassVar[Rejection.Reason]
        REASON_OVERLOADED: _ClassVar[Rejection.Reason]
    REASON_UNSPECIFIED: Rejection.Reason
    REASON_UNKNOWN_PLAN: Rejection.Reason
    REASON_BAD_PAYLOAD: Rejection.Reason
    REASON_INTERNAL: Rejection.Reason
    REASON_STALE_REFERENCE: Rejection.Reason
    REASON_OVERLOADED: Rejection.Reason
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    reason: Rejection.Reason
    message: str
    retry_after_ms: int
    def __init__(self, frame_id: _Optional[int] = ..., reason: _Optional[_Union[Rejection.Reason, str]] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...
