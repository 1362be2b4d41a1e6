"""A real link that is shaped: two network namespaces of this machine and a thin wire between them.

    with shaped(parse_link("3mbit/40ms")) as wire:
        Service(["cloud", "--host", wire.cloud.address], log, prefix=wire.cloud.prefix)
        Service(["edge", "--cloud", f"{wire.cloud.address}:50051"], log, prefix=wire.edge.prefix)
        wire.change(parse_link("1mbit/40ms"))     # also in the middle of a transfer

The wire is two TUN devices and our own process between them (`bench.links.relay`). Real sockets,
real TCP, real packets; only the wire is made up. Needs root, Linux and iproute2;
`emulated` needs none of them. Both ends control congestion as Linux usually does, whatever this
machine prefers: by CUBIC, or by Reno where namespaces may not, which at such rates is much alike.
(BBR, say, sends at the rate that it has seen, and sees a link quicken only by much data.) They
remember their window over pauses: here a stream rests while others have their turn, but not as a
camera's would, and larger messages would have to wait for a round trip more (RFC 6928).
Everything has names of its own, so that runs beside each other do not meet, and is removed in the
end.
"""

import contextlib
import ctypes
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.processes import end as end_process
from common.errors import SplitpointError
from common.link.link import Link

RTT_MS = 20.0
"""Usual round trip of benches."""

_EDGE, _CLOUD = "10.77.0.2", "10.77.0.1"
_CONGESTION, _USUAL = Path("/proc/sys/net/ipv4/tcp_congestion_control"), ("cubic", "reno")
_SLOW_START_AFTER_IDLE = Path("/proc/sys/net/ipv4/tcp_slow_start_after_idle")
_CLONE_NEWNET = 0x40000000
T = TypeVar("T")
_numbers = itertools.count()


def link_of(mbit: float, rtt_ms: float = RTT_MS) -> Link:
    """A link of the same bandwidth in both directions."""
    return Link(mbit * 1e6, mbit * 1e6, rtt_ms)


class ShapingError(SplitpointError):
    """This machine lets no link be shaped."""


@dataclass(frozen=True)
class End:
    """One end of the wire.

    Attributes:
        address: Address by which the other end reaches it.
        prefix: Prefix of the command line of a process that shall run there.
        namespace: Its network namespace.
    """

    address: str
    prefix: tuple[str, ...]
    namespace: str

    def inside(self, call: Callable[[], T]) -> T:
        """Call in a thread of this namespace, where sockets that it opens then stay.

        Raises:
            ShapingError: If this process may not enter the namespace.
        """

        def entered() -> T:
            with Path("/run/netns", self.namespace).open("rb") as file:
                if ctypes.CDLL(None).setns(file.fileno(), _CLONE_NEWNET):
                    raise ShapingError(f"namespace {self.namespace} may not be entered")
            return call()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(entered if self.namespace else call).result()

    def listens(self, port: int) -> bool:
        """Whether a process of this end listens there."""
        try:
            self.inside(lambda: socket.create_connection((self.address, port), 1).close())
        except OSError:
            return False
        return True


@dataclass(frozen=True)
class ShapedLink:
    """Both ends of a link, and the wire between.

    Attributes:
        edge: One end.
        cloud: The other.
        change: Gives the wire the conditions of another link; None is an outage.
        congestion: TCP's congestion control, in words; None for this machine's default.
        left_to_edges: The link that every edge process has to emulate by itself, because there is
            no such wire; None if there is.
    """

    edge: End
    cloud: End
    change: Callable[[Link | None], None]
    congestion: str | None = None
    left_to_edges: Link | None = None


@contextlib.contextmanager
def shaped(link: Link) -> Iterator[ShapedLink]:
    """Create two namespaces with a shaped link between them, for the length of the block.

    Args:
        link: Bandwidth and round trip at first.

    Raises:
        ShapingError: If this machine does not support it, or does not permit it.
    """
    _check_machine()
    number = next(_numbers)
    with ExitStack() as stack:
        edge, cloud = (
            _end(stack, f"splitpoint-{os.getpid()}-{number}-{side}", address)
            for side, address in (("edge", _EDGE), ("cloud", _CLOUD))
        )
        devices = [f"sp{os.getpid()}{side}{number}" for side in ("e", "c")]
        relay = _Relay(stack, devices)
        relay.change(link)
        for end, device in zip((edge, cloud), devices, strict=True):
            _run("ip", "link", "set", device, "netns", end.namespace)
            _up(end, device)
        yield ShapedLink(edge, cloud, relay.change, _congestion(edge, cloud))


def emulated(link: Link) -> ShapedLink:
    """Loopback instead of a wire, for machines that let no link be shaped.

    Edges emulate the link in their own process (`edge.stream.shaping`), each for itself, and it
    stays as it is.
    """

    def change(now: Link | None) -> None:
        if now != link:
            raise ShapingError("a link that edges emulate does not change: start them anew")

    end = End("127.0.0.1", (), "")
    return ShapedLink(end, end, change, left_to_edges=link)


def can_shape() -> bool:
    """Whether this process may make network namespaces."""
    try:
        _check_machine()
    except ShapingError:
        return False
    return True


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise ShapingError("network namespaces need root: run this as root, or emulate the link")
    if shutil.which("ip") is None:
        raise ShapingError("`ip` is missing: apt-get install iproute2")


def _end(stack: ExitStack, namespace: str, address: str) -> End:
    _run("ip", "netns", "add", namespace)
    stack.callback(_run, "ip", "netns", "delete", namespace)
    _run("ip", "-n", namespace, "link", "set", "lo", "up")
    return End(address, ("ip", "netns", "exec", namespace), namespace)


def _congestion(*ends: End) -> str:
    """Set the same congestion control at both ends; returns it in words."""
    for end in ends:
        end.inside(lambda: _SLOW_START_AFTER_IDLE.write_text("0"))
    for name in _USUAL:
        with contextlib.suppress(OSError):
            for end in ends:
                end.inside(lambda: _CONGESTION.write_text(name))  # noqa: B023 - called at once
            return f"{name}, with windows that outlast pauses"
    raise ShapingError(f"TCP may control congestion by none of {', '.join(_USUAL)} in a namespace")


def _up(end: End, device: str) -> None:
    """Give the end its address on that device."""
    _run("ip", "-n", end.namespace, "addr", "add", f"{end.address}/24", "dev", device)
    options = ("mtu", "1500", "txqueuelen", "200", "up")
    _run("ip", "-n", end.namespace, "link", "set", device, *options)


class _Relay:
    """The process between two TUN devices, which it makes in our own namespace."""

    def __init__(self, stack: ExitStack, devices: list[str]) -> None:
        if not Path("/dev/net/tun").exists():
            raise ShapingError("/dev/net/tun is missing: this kernel has no TUN devices")
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "bench.links.relay", *devices],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        stack.callback(end_process, self._process)
        self._expect("ready")

    def change(self, link: Link | None) -> None:
        """Apply the conditions of another link, also to packets in the queue."""
        asked = [0.0, 0.0, 0.0]
        if link is not None:
            asked = [link.uplink_bps, link.downlink_bps, link.rtt_ms / 2]
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
        self._expect("changed")

    def _expect(self, word: str) -> None:
        output = self._process.stdout
        if output is None or output.readline().strip() != word:
            raise ShapingError("the relay between the TUN devices ended")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ShapingError(f"`{' '.join(command)}` failed: {said}")
