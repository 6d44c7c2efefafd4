"""The server on an exported file, and onnxruntime beside torch: the same answers as the network's own."""

import numpy as np
import pytest
import torch

import attention_branch as ab
from attention_branch.serve.accelerated import Accelerated
from attention_branch.serve.onnx_predictor import OnnxPredictor
from attention_branch.serve.run import load_predictor
from attention_branch.serve.without import highest
from serving import CLASSES, Server, encoded, picture, saved_model

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model = saved_model(folder / "model")
    ab.export(folder / "model", folder / "model.onnx", attention_logits=True, class_evidence=True, data="random")
    return model, folder / "model.onnx", folder / "model"


@pytest.fixture
def server(made, tmp_path):
    running = Server(made[1], tmp_path / "annotations")
    yield running
    running.close()


def answer(model, image):
    with torch.no_grad():
        return model(model.preprocessing.tensor(image)[None])


def test_pictures_get_the_networks_own_answers_and_maps(made, server):
    pictures = [picture(seed) for seed in range(3)]
    results = server.send(*map(encoded, pictures), maps="array").json()["results"]
    for image, result in zip(pictures, results, strict=True):
        own = answer(made[0], image)
        assert result["probabilities"] == pytest.approx(own.logits.softmax(1)[0].tolist(), abs=1e-4)
        assert result["attention_branch"]["index"] == int(own.attention_logits.argmax())
        assert np.array(result["maps"][0]["values"]) == pytest.approx(own.attention[0, 0].numpy(), abs=1e-4)
        assert result["engine"] == "onnxruntime"


def test_a_given_map_and_the_evidence_for_a_class(made, server):
    image = picture(4)
    key = server.open(encoded(image)).json()["id"]
    given = torch.zeros(1, 16, 16)
    given[:, 4:9] = 1
    reply = server.client.post(f"/v1/images/{key}/answer", json={"maps": {"label": given[0].tolist()}}).json()
    images = made[0].preprocessing.tensor(image)[None]
    with torch.no_grad():
        own = made[0](images, attention=given).logits.softmax(1)[0]
        evidence = made[0].class_evidence(images)[0, CLASSES.index("dog")].numpy()
    assert reply["probabilities"] == pytest.approx(own.tolist(), abs=1e-4)
    found = server.client.get(f"/v1/images/{key}/map", params={"method": "attention-class", "target": "dog"}).json()
    assert np.array(found["values"]) == pytest.approx(evidence, abs=1e-3)
    assert server.client.get(f"/v1/images/{key}/map", params={"method": "grad-cam"}).status_code == 422
    assert server.client.get(f"/v1/images/{key}/reading").status_code == 200


def test_the_highest_fifth_is_where_the_map_is_highest():
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    assert np.array_equal(np.flatnonzero(highest(values)), np.arange(80, 100))
    assert np.array_equal(np.flatnonzero(highest(np.zeros((5, 5)))), np.arange(5))


def test_a_run_is_answered_by_onnxruntime_and_looked_at_by_torch(made):
    said = []
    predictor = load_predictor(made[2], engine="auto", say=said.append)
    assert isinstance(predictor, Accelerated)
    assert "onnxruntime" in predictor.facts.engine
    assert "grad-cam" in predictor.facts.methods
    images = np.stack([made[0].preprocessing.array(picture(seed)) for seed in range(3)])
    for image, found in zip(images, predictor.predict(images), strict=True):
        with torch.no_grad():
            own = made[0](torch.tensor(image)[None])
        assert found.logits["label"] == pytest.approx(own.logits[0].numpy(), abs=1e-4)
        assert found.attention_logits["label"] == pytest.approx(own.attention_logits[0].numpy(), abs=1e-4)
        opened = predictor.open(image).answer
        assert opened.logits["label"] == pytest.approx(own.logits[0].numpy(), abs=1e-4)


def test_a_plain_network_exports_its_cam(tmp_path):
    model = saved_model(tmp_path / "m", baseline=True)
    ab.export(tmp_path / "m", tmp_path / "plain.onnx", data="random")
    predictor = OnnxPredictor(tmp_path / "plain.onnx")
    assert predictor.facts.methods == ["cam"]
    assert predictor.facts.question is not None
    opened = predictor.open(model.preprocessing.array(picture(1)))
    own = ab.explain(model, picture(1), "cam", "horse").raw[0].numpy()
    assert opened.explain("cam", "label", 2).values == pytest.approx(own, abs=1e-4)
