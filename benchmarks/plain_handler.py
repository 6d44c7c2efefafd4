"""The same network behind a plain handler, as a first try at a service writes it: the rival in `serve_load.py`.

    python benchmarks/plain_handler.py MODEL PORT

FastAPI, one picture a request, Pillow, the network's own preprocessing, one forward pass of torch in eager mode on
FastAPI's threads, the probabilities and the map as JSON. No batches, no limits.
"""

import io
import sys

import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

import attention_branch as ab


def application(folder: str) -> FastAPI:
    """Return the application around a saved network."""
    model = ab.load_model(folder)
    app = FastAPI()

    @app.post("/v1/predict")
    def predict(files: UploadFile) -> dict[str, object]:
        picture = Image.open(io.BytesIO(files.file.read())).convert("RGB")
        with torch.inference_mode():
            output = model(model.preprocessing.tensor(picture)[None])
        shares = output.logits.softmax(1)[0]
        return {
            "prediction": model.class_names[int(shares.argmax())] if model.class_names else int(shares.argmax()),
            "probabilities": shares.tolist(),
            "attention_branch": int(output.attention_logits.argmax()),
            "map": output.attention[0, 0].tolist(),
        }

    return app


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), port=int(sys.argv[2]), log_level="error")
