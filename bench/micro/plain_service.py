"""A service as written without Splitpoint: FastAPI, a JPEG upload, ONNX Runtime, boxes as JSON.

    python -m bench.micro.plain_service --bundle DIR --port N

A baseline for our own path of image uploads, to show that this is no straw man. It runs the same
floating-point network with the same threads and decodes boxes with the same code; only the server
around them is the usual one.
"""

import argparse
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request

from common.bundle.bundle import Bundle
from common.codec.spec import LOSSLESS_UPLOADS
from common.imaging.images import decode_image
from common.runtime.registry import open_model

# The connection outlives the turns of all other strategies: no frame pays for a new one.
_KEEP_ALIVE_S = 600
_STOP_S = 2


def create_app(bundle: Bundle) -> FastAPI:
    """Create the app."""
    task = bundle.manifest.task
    plan = next(p for p in bundle.plans.values() if p.codec in LOSSLESS_UPLOADS)
    if plan.tail is None:
        raise RuntimeError("an upload without a tail")
    model = open_model(bundle.file(plan.tail.file))
    values = plan.wire[0].to_value
    scale = values[1] - values[0]
    app = FastAPI()

    @app.post("/detect")
    async def detect(request: Request) -> list[dict[str, object]]:
        image = decode_image(await request.body())
        pixels = task.image.pixels(image)[None].astype("float32") * scale
        maps = [output[0] for output in model.run({plan.wire[0].name: pixels})]
        found = task.decode(maps, task.image.place(image.shape[1], image.shape[0]))
        return [dict(row) for row in found.to_json(task.class_names)]

    return app


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = create_app(Bundle.open(arguments.bundle))
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_STOP_S,
    )


if __name__ == "__main__":
    main()
