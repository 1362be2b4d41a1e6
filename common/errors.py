"""Every error a user can meet, as one tree.

    SplitpointError
      ├─ SettingsError         an option or setting that makes no sense
      │    └─ WrongTaskError       asked of a network of another task
      ├─ ImageError            not an image, or one that cannot be decoded
      │    └─ ImageTooLargeError   over the limit on bytes or on pixels
      ├─ SourceError           a video or camera that cannot be opened or read
      ├─ ModelError            a network that cannot be read, exported or cut
      ├─ WeightsError          weights missing, cut off or not the published ones
      ├─ CalibrationError      calibration or evaluation images missing or unusable
      ├─ NoFeasiblePlanError   no plan satisfies the limits
      ├─ BundleError           a bundle that does not match its manifest
      │    └─ BundleVersionError   a bundle of another schema version
      ├─ ParityError           this machine's runtime does not reproduce the head
      ├─ PayloadError          bytes on the wire that cannot be decoded
      │    └─ StaleReferenceError  coded after a frame that the cloud does not remember
      ├─ StoreError            a file of measurements that cannot be used
      ├─ UnknownPlanError      a plan digest that the receiver does not hold
      ├─ CloudUnavailableError the cloud cannot be reached, or went away
      │    ├─ CloudOverloadedError  it is there, and has no capacity for more now
      │    └─ CloudFailedError      it is there, and its answer cannot be used
      │         └─ PlanNotHeldError     it does not hold the tail of the plan
      ├─ OverloadedError       more work than can be taken on now; says when to try again
      └─ AddressInUseError     a port that another process holds

A message is one line that says what was expected, what came and what to do. Foreign exceptions are
mapped to this tree at the boundary where they arise, so a user never reads a stack trace for a
mistake. `exit_code` follows sysexits(3); `http_status` is what a REST caller gets.
"""

from typing import ClassVar


class SplitpointError(Exception):
    """Base of every error that Splitpoint raises on purpose."""

    exit_code: ClassVar[int] = 70
    http_status: ClassVar[int] = 500


class SettingsError(SplitpointError):
    """An option or setting that makes no sense."""

    exit_code = 64
    http_status = 422


class WrongTaskError(SettingsError):
    """A request that a network of this task cannot serve, such as detections of a classifier."""

    http_status = 409


class ImageError(SplitpointError):
    """Bytes that are not an image, or an image that cannot be decoded."""

    exit_code = 65
    http_status = 415


class ImageTooLargeError(ImageError):
    """An image over the limit on bytes or on pixels."""

    http_status = 413


class SourceError(SplitpointError):
    """A video or camera that cannot be opened or read, or gave no frame yet."""

    exit_code = 66
    http_status = 503


class ModelError(SplitpointError):
    """A network that cannot be read, exported or cut."""

    exit_code = 65


class WeightsError(SplitpointError):
    """Weights that are missing, cut off, or not the published ones."""

    exit_code = 66


class CalibrationError(SplitpointError):
    """Calibration or evaluation images that are missing or unusable."""

    exit_code = 66


class NoFeasiblePlanError(SplitpointError):
    """No plan satisfies the limits that were given."""

    exit_code = 69


class BundleError(SplitpointError):
    """A bundle that is incomplete or does not match its manifest."""

    exit_code = 65


class BundleVersionError(BundleError):
    """A bundle written for another version of the schema."""


class ParityError(SplitpointError):
    """This machine's runtime does not reproduce the head bit for bit."""

    exit_code = 70


class PayloadError(SplitpointError):
    """Bytes on the wire that are truncated, corrupt or of the wrong size."""

    exit_code = 65
    http_status = 400


class StaleReferenceError(PayloadError):
    """A frame that is coded after one that the receiver does not remember."""


class StoreError(SplitpointError):
    """A file of measurements that cannot be used."""

    exit_code = 65


class UnknownPlanError(SplitpointError):
    """A plan digest that the receiver does not hold."""

    exit_code = 65
    http_status = 409


class CloudUnavailableError(SplitpointError):
    """The cloud cannot be reached, or went away in the middle."""

    exit_code = 69
    http_status = 503


class CloudOverloadedError(CloudUnavailableError):
    """The cloud turned a stream or a frame away: it has no capacity for more now.

    Args:
        message: Why, and what to do.
        retry_after_s: When the cloud asks to be tried again; 0 if it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CloudFailedError(CloudUnavailableError):
    """The cloud refused a sound frame, or answered with what cannot be used."""

    http_status = 502


class PlanNotHeldError(CloudFailedError):
    """The cloud does not hold the tail of a plan that the edge has: their bundles differ."""


class OverloadedError(SplitpointError):
    """More work than can be taken on now.

    Args:
        message: Which limit holds, and what to do.
        retry_after_s: When another try makes sense, in whole seconds.
    """

    exit_code = 69
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AddressInUseError(SplitpointError):
    """A port that another process holds, or may not be bound."""

    exit_code = 71
