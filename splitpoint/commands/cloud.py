"""`splitpoint cloud`: serve a bundle's tails over gRPC and REST."""

from pathlib import Path
from typing import Annotated

import typer

from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options


def run(
    bundle: Annotated[Path, typer.Option(help="The bundle: a folder or its zip file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port for edges; 0 takes a free one.")] = 50051,
    rest_host: Annotated[
        str, typer.Option(help="Address for REST, which is unencrypted; default: --host.")
    ] = "",
    rest_port: Annotated[int, typer.Option(help="Port for REST; 0 takes a free one.")] = 8080,
    threads: options.TailThreads = 1,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    workers: options.Workers = 2,
    max_edges: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Most edges at once; at most half from one address."),
    ] = 512,
    store: Annotated[
        Path | None,
        typer.Option(help="SQLite file for frame times; without, they are kept in memory only."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="Name of this machine in latency tables; default: its CPU model."),
    ] = "",
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="SPLITPOINT_TLS_CERT", help="TLS for gRPC: this server's certificate (PEM)."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(envvar="SPLITPOINT_TLS_KEY", help="Private key of --tls-cert (PEM)."),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="SPLITPOINT_TLS_CLIENT_CA",
            help="CA certificate (PEM): serve only edges whose certificate it has signed.",
        ),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="JSON file with the ports, written once requests are served."),
    ] = None,
) -> None:
    """Serve the tails of a bundle to edges, and whole images over REST."""
    from common.http.log_limits import quiet_grpc

    quiet_grpc()
    from cloud.server import CloudSettings, serve  # heavy: only this command needs it
    from common.rpc.tls import ServerTls

    settings = CloudSettings(
        bundle,
        host=host,
        grpc_port=grpc_port,
        rest_host=rest_host,
        rest_port=rest_port,
        threads=threads,
        runtime=runtime,
        workers=workers,
        max_edges=max_edges,
        store=store,
        device=device,
        tls=ServerTls(tls_cert, tls_key, tls_client_ca),
        ready_file=ready_file,
    )
    serve(settings)
