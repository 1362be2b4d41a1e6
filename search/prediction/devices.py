"""Device profiles: how an edge differs from the machine that the search runs on.

Times are measured here and multiplied by `slowdown`. A profile with a slowdown stands for a share
of one of this machine's cores (a CPU quota), not for another architecture: measure on the device
itself where that matters (table_calibration.py).

    own time x pace of the device or of the cloud -> time there
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.choices import one_of
from common.machine import saturates_int8


@dataclass(frozen=True)
class DeviceProfile:
    """An edge device.

    Attributes:
        name: As given to `--device`.
        slowdown: Its time over this machine's, one thread each.
        reduced_range: Whether weights must keep to 7 bits (x86 without VNNI).
    """

    name: str
    slowdown: float
    reduced_range: bool = False


@dataclass(frozen=True)
class SpeedModel:
    """Speed of a device or of the cloud, relative to this machine.

    Attributes:
        slowdown: Time there over time here, unless one of the others applies.
        known_ms: Times measured there, by segment; see `common.tables.rows.segments`.
        coding: Slowdown of coding, by name of the codec.
    """

    slowdown: float = 1.0
    known_ms: Mapping[str, float] = field(default_factory=dict)
    coding: Mapping[str, float] = field(default_factory=dict)

    def ms(self, segment: str, own_ms: float, codec: str = "") -> float:
        """Time of a segment there.

        Args:
            segment: Its name.
            own_ms: Its time on this machine.
            codec: Name of the codec, if the segment is coding.
        """
        known = self.known_ms.get(segment)
        return own_ms * self.coding_slowdown(codec) if known is None else known

    def coding_slowdown(self, codec: str) -> float:
        """Time there over time here of coding with a codec."""
        return self.coding.get(codec, self.slowdown)


_HERE = saturates_int8()
DEVICES = {
    profile.name: profile
    for profile in (
        DeviceProfile("this-machine", 1.0, _HERE),
        DeviceProfile("half-core", 2.0, _HERE),
        DeviceProfile("quarter-core", 4.0, _HERE),
        DeviceProfile("tenth-core", 10.0, _HERE),
        DeviceProfile("this-machine-no-vnni", 1.0, reduced_range=True),
    )
}


def device_profile(name: str) -> DeviceProfile:
    """Look a profile up.

    Raises:
        SettingsError: If there is none of that name.
    """
    return DEVICES[one_of(name, DEVICES, "device")]
