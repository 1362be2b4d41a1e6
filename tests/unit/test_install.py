"""Installing for a command of the Makefile: what is said while pip works."""

import pytest

from splitpoint.install import progress

_FOUND = """Looking in links: somewhere
Collecting torch==2.13.0
  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (191 MB)
Obtaining file:///checkout
Collecting numpy>=2.1 (from splitpoint==0.1.0)
Collecting numpy>=2.1 (from splitpoint==0.1.0)
Collecting uvicorn[standard]
""".splitlines()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "0 packages found"),
        (_FOUND, "4 packages found"),  # each once, and the project's own
        ([*_FOUND, "Installing collected packages: a, b, torch"], "unpacking 3 packages"),
    ],
)
def test_it_says_how_far_pip_is(lines: list[str], said: str) -> None:
    assert progress(lines) == said
