"""A small network behind the server, and pictures to send, for the tests of the server."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

import attention_branch as ab
from attention_branch.serve.api import application
from attention_branch.serve.run import close_state, load_predictor, make_state

CLASSES = ["cat", "dog", "horse"]


def saved_model(folder, **options):
    """Save an untrained network whose answers depend on the picture and the map, and return it."""
    torch.manual_seed(3)
    options = {"num_classes": 3, "class_names": CLASSES, "branch": "lite"} | options
    maker = ab.create_backbone if options.pop("baseline", False) else ab.create_model
    if maker is ab.create_backbone:
        options.pop("branch")
    model = maker("resnet14", **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        model(torch.randn(8, 3, 32, 32))
    model.preprocessing = replace(model.preprocessing, size=(32, 32))
    model.eval().save_pretrained(folder)
    return ab.load_model(folder)


def picture(seed=0, size=(40, 48)):
    """Return a smooth random picture of (height, width)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG"):
    """Return a picture's bytes in a format."""
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


class Server:
    """A server's application without a network between it and the test."""

    def __init__(self, run, annotations, *, pictures=None, limits=None, batch=8, **guard):
        self.predictor = load_predictor(run) if isinstance(run, str | Path) else run
        self.state = make_state(self.predictor, annotations, limits=limits, batch=batch, pictures=pictures)
        self.application = application(self.state, **guard)
        self.client = TestClient(self.application, base_url="http://localhost", raise_server_exceptions=False)

    def close(self):
        close_state(self.state)

    def send(self, *contents, **query):
        files = [("files", (f"{number}.png", content, "image/png")) for number, content in enumerate(contents)]
        return self.client.post("/v1/predict", files=files, params=query)

    def open(self, content, name="a.png"):
        return self.client.post("/v1/images", files={"files": (name, content, "image/png")})
