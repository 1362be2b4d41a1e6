"""Print what the project needs for an extra, so that it is installed before the project's code.

A change of the code then rebuilds none of the layers that hold packages.

    python docker/requirements.py edge
"""

import sys
import tomllib
from pathlib import Path


def main(extra: str) -> None:
    """Print one requirement per line."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    print("\n".join(lines))  # noqa: T201 - its output


if __name__ == "__main__":
    main(sys.argv[1])
