"""Take out of installed packages what no edge or cloud process opens: a third of their size.

    python docker/slim.py FOLDER

The build then imports what is left, so that nothing that is needed can be missing unnoticed.
"""

import shutil
import struct
import subprocess
import sys
from pathlib import Path

UNUSED = (
    # ONNX Runtime's Python module does not link its library; the rest are offline tools.
    "onnxruntime/capi/libonnxruntime.so*",
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "numpy/_core/include",
    "numpy/_core/lib",
    "numpy/distutils",
    "numpy/f2py",
    "numpy/random/lib",
    "numpy/**/tests",
    "pygments/lexers/[a-z]*.py",
    "pygments/lexers/__pycache__/[a-z]*.pyc",
    # There is one in C, which serves.
    "zstandard/_cffi*.so",
    "**/*.pxd",
    "**/*.pyi",
)


def main(folder: Path) -> None:
    """Remove what is unused, and debug symbols."""
    for pattern in UNUSED:
        for path in list(folder.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for path in folder.rglob("*.so*"):
        strip(path)


def strip(library: Path) -> None:
    """Strip a library, unless that breaks it, as it does some whose paths a wheel rewrote."""
    stripped = library.with_name(f"{library.name}.stripped")
    command = ["strip", "--strip-unneeded", "-o", str(stripped), str(library)]
    done = subprocess.run(command, check=False, capture_output=True)  # noqa: S603
    if done.returncode == 0 and aligned(stripped.read_bytes()):
        stripped.chmod(library.stat().st_mode)
        stripped.replace(library)
    else:
        stripped.unlink(missing_ok=True)


def aligned(elf: bytes) -> bool:
    """Whether the loader would map every segment of a 64-bit ELF file (its PT_LOAD headers)."""
    (start,) = struct.unpack_from("<Q", elf, 32)
    size, number = struct.unpack_from("<HH", elf, 54)
    for index in range(number):
        kind, _, offset, address, _, _, _, align = struct.unpack_from(
            "<IIQQQQQQ", elf, start + index * size
        )
        if kind == 1 and (address - offset) % max(align, 1):
            return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
