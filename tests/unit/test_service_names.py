"""Names of edges: from their certificate, or else from their Hello."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud.admission import Admission
from cloud.edges import Edges
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from tests import tiny
from tests.planes import HELLO, Aborted, FakeContext, exchange, serve, sessions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    return Tails(bundle)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class TestNames:
    """Who an edge is: by its certificate, if it has one."""

    def _name(
        self, tails: Tails, workers: ThreadPoolExecutor, certificate: dict[str, list[bytes]]
    ) -> str:
        async def run() -> str:
            edges = Edges()
            context = FakeContext(HELLO, hang_up=False)
            context.certificate = certificate
            serving = asyncio.ensure_future(
                serve(sessions(tails, Admission(workers, 1), edges=edges), context)
            )
            while not edges.all():
                if serving.done():
                    await serving
                await asyncio.sleep(0)
            name = edges.all()[0].name
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return name

        return asyncio.run(run())

    @pytest.mark.parametrize(
        ("certificate", "name"),
        [
            ({}, "test"),
            ({"transport_security_type": [b"ssl"]}, "test"),  # TLS without client certificates
            ({"x509_common_name": [b"door"]}, "door"),
            ({"x509_subject_alternative_name": [b"door.example", b"x"]}, "door.example"),
            ({"x509_common_name": [b"door"], "x509_subject_alternative_name": [b"x"]}, "door"),
        ],
    )
    def test_a_certificates_name_counts(
        self,
        tails: Tails,
        workers: ThreadPoolExecutor,
        certificate: dict[str, list[bytes]],
        name: str,
    ) -> None:
        assert self._name(tails, workers, certificate) == name

    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb", "a\u2028b", "\x00"])
    def test_names_are_printable(
        self, tails: Tails, workers: ThreadPoolExecutor, name: str
    ) -> None:
        hello = pb.EdgeMessage(hello=pb.Hello(edge_id=name, bundle_digest=bytes(32)))
        with pytest.raises(Aborted, match="expected printable characters") as caught:
            exchange(tails, workers, hello)
        assert str(caught.value).isprintable()
        with pytest.raises(Aborted, match="expected printable characters"):
            self._name(tails, workers, {"x509_common_name": [name.encode()]})
