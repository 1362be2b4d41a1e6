"""A link between two network namespaces in user space: rate and delay, changeable.

    TUN device (edge) <-> this process, one `Lane` per direction <-> TUN device (cloud)

For kernels without netem. Started by `bench.links.shaped` as a process of its own, so that it does
not share an interpreter lock with what is measured. It makes both devices, says "ready", and takes
a line of JSON per change on its standard input: the rates up and down in bit/s, 0 to let nothing
pass, and the delay of each way in ms. When that ends, it ends, and the devices are gone with it.
Packets that wait while the rate changes leave at the new one.
"""

import contextlib
import ctypes
import fcntl
import json
import math
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PR_SET_TIMERSLACK = 29
_MTU = 65536
# Queue of a home router: 200 ms of the rate, but at least a few packets on the slowest links.
_QUEUE_S, _LEAST_QUEUE_BYTES = 0.2, 32_000.0


class Lane:
    """One direction: packets queue, are sent at the rate, then travel. Times are in seconds."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._flying: deque[tuple[float, bytes]] = deque()
        # Bytes of the packet at the front still to be sent, counted from a time at this rate.
        self._left_bytes = self._since_s = 0.0
        self._last_s = -math.inf
        self._bytes_per_s = self._delay_s = 0.0

    def change(self, now_s: float, rate_bps: float, delay_ms: float) -> None:
        """Change rate and delay, also of the rest of the packet at the front."""
        self._advance(now_s)
        self._left_bytes -= (now_s - self._since_s) * self._bytes_per_s
        self._since_s = now_s
        self._bytes_per_s = rate_bps / 8
        self._delay_s = delay_ms / 1e3

    def put(self, now_s: float, packet: bytes) -> None:
        """Enqueue a packet, unless the queue is full."""
        self._advance(now_s)
        limit = max(_LEAST_QUEUE_BYTES, _QUEUE_S * self._bytes_per_s)
        if self._waiting_bytes + len(packet) > limit:
            return
        if not self._waiting:
            self._left_bytes, self._since_s = len(packet), now_s
        self._waiting.append(packet)
        self._waiting_bytes += len(packet)

    def take(self, now_s: float) -> list[bytes]:
        """Return the packets that have arrived by now."""
        self._advance(now_s)
        arrived = []
        while self._flying and self._flying[0][0] <= now_s:
            arrived.append(self._flying.popleft()[1])
        return arrived

    def next_s(self) -> float:
        """Time of the next event that `take` has to handle."""
        return min(self._sent_s(), self._flying[0][0] if self._flying else math.inf)

    def _advance(self, now_s: float) -> None:
        """Move the packets that have been sent by now from the queue into flight."""
        while (sent_s := self._sent_s()) <= now_s:
            packet = self._waiting.popleft()
            self._waiting_bytes -= len(packet)
            self._last_s = max(self._last_s, sent_s + self._delay_s)  # order is kept
            self._flying.append((self._last_s, packet))
            if self._waiting:
                self._left_bytes, self._since_s = len(self._waiting[0]), sent_s

    def _sent_s(self) -> float:
        """Time at which the last bit of the packet at the front is sent."""
        if not self._waiting or not self._bytes_per_s:
            return math.inf
        return self._since_s + self._left_bytes / self._bytes_per_s


def main() -> None:
    """Relay between the two devices named, until the standard input ends."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # wake up when it was asked for
    edge, cloud = (_device(name) for name in sys.argv[1:3])
    up, down = Lane(), Lane()
    directions = ((edge, up, cloud), (cloud, down, edge))
    _say("ready")
    while True:
        wake_s = min(up.next_s(), down.next_s()) - time.monotonic()
        timeout_s = None if math.isinf(wake_s) else max(0.0, wake_s)
        readable, _, _ = select.select([edge, cloud, sys.stdin], [], [], timeout_s)
        now_s = time.monotonic()
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                return
            up_bps, down_bps, delay_ms = json.loads(line)
            up.change(now_s, up_bps, delay_ms)
            down.change(now_s, down_bps, delay_ms)
            _say("changed")
        for source, lane, sink in directions:
            if source in readable:
                lane.put(now_s, os.read(source, _MTU))
            for packet in lane.take(now_s):
                with contextlib.suppress(OSError):  # as on any wire, if nobody is there
                    os.write(sink, packet)


def _device(name: str) -> int:
    """A new TUN device, which lives as long as its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
