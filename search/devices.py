"""Device profiles: how an edge differs from the machine that the search runs on.

Times are measured here and multiplied by `slowdown`. A profile with a slowdown stands for a share
of one of this machine's cores (a CPU quota), not for another architecture: measure on the device
itself where that matters.
"""

from dataclasses import dataclass

from common.choices import one_of


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


DEVICES = {
    profile.name: profile
    for profile in (
        DeviceProfile("this-machine", 1.0),
        DeviceProfile("half-core", 2.0),
        DeviceProfile("quarter-core", 4.0),
        DeviceProfile("tenth-core", 10.0),
        DeviceProfile("this-machine-no-vnni", 1.0, reduced_range=True),
    )
}


def device_profile(name: str) -> DeviceProfile:
    """Look a profile up.

    Raises:
        SettingsError: If there is none of that name.
    """
    return DEVICES[one_of(name, DEVICES, "device")]
