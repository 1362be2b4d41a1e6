"""A service as written without Splitpoint: FastAPI, a JPEG upload, ONNX Runtime, boxes as JSON.

    python -m bench.micro.plain_service --bundle DIR --port N

A baseline for our own path of image uploads, to show that this is no straw man. It runs the same
floating-point network with the same threads and decodes boxes with the same code; only the server
around them is the usual one.
"""

import argparse
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from numpy.typing import NDArray

from common.bundle.bundle import Bundle
from common.codec.spec import LOSSLESS_UPLOADS
from common.errors import SplitpointError
from common.imaging.images import decode_image
from common.runtime.registry import open_model
from common.tasks.base import TaskResult

# The connection outlives the turns of all other strategies: no frame pays for a new one.
_KEEP_ALIVE_S = 600
_STOP_S = 2


class WholeNetwork:
    """The network in floating point, as the bundle has it for uploads that lose nothing.

    Args:
        bundle: The opened bundle.

    Raises:
        SplitpointError: If it has no such upload.
    """

    def __init__(self, bundle: Bundle) -> None:
        plan = next((p for p in bundle.plans.values() if p.codec in LOSSLESS_UPLOADS), None)
        if plan is None or plan.tail is None:
            raise SplitpointError("no plan of this bundle has the whole network")
        self._wire = plan.wire[0]
        self._model = open_model(bundle.file(plan.tail.file))
        self._task = bundle.manifest.task

    def infer(self, image: NDArray[np.uint8]) -> TaskResult:
        """Compute the task's result for one (H, W, 3) RGB image."""
        scale = np.float32(self._wire.to_value[1] - self._wire.to_value[0])
        pixels = self._task.image.pixels(image)[None].astype(np.float32) * scale
        maps = [output[0] for output in self._model.run({self._wire.name: pixels})]
        return self._task.decode(maps, self._task.image.place(image.shape[1], image.shape[0]))


def create_app(bundle: Bundle) -> FastAPI:
    """Create the app."""
    network, names = WholeNetwork(bundle), bundle.manifest.task.class_names
    app = FastAPI()

    @app.post("/detect")
    async def detect(request: Request) -> list[dict[str, object]]:
        found = network.infer(decode_image(await request.body()))
        return [dict(row) for row in found.to_json(names)]

    return app


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        create_app(Bundle.open(arguments.bundle)),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_S,
    )


if __name__ == "__main__":
    main()
