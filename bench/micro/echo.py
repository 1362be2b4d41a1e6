"""A bare gRPC stream that echoes, in a process of its own: lower bound of a stream's cost."""

import asyncio
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from bench.processes import end
from common.rpc.messages import channel_options

_SERVICE = "bench.Echo"


@contextmanager
def echo_client() -> Iterator[Callable[[bytes], bytes]]:
    """Start the echo; gives a call that sends bytes and waits until they are back."""
    command = [sys.executable, "-m", "bench.micro.echo"]
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel:
                open_stream: Any = channel.stream_stream(f"/{_SERVICE}/Stream")
                answers: Iterator[bytes] = open_stream(iter(requests.get, None))

                def echo(data: bytes) -> bytes:
                    requests.put(data)
                    return next(answers)

                yield echo
        finally:
            requests.put(None)  # a thread of gRPC's waits for it
            end(process)


async def _serve() -> None:
    """Echo until standard input ends; prints the port."""
    server = grpc.aio.server(options=channel_options())
    handler: Any = grpc.stream_stream_rpc_method_handler(_echo)
    service = grpc.method_handlers_generic_handler(_SERVICE, {"Stream": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)  # noqa: T201 - for the parent process
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def _echo(requests: object, context: Any) -> None:
    del requests  # read as the product's cloud reads
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


if __name__ == "__main__":
    asyncio.run(_serve())
