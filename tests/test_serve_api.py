"""The server's answers against the network's own, and what it says of requests it does not take."""

import asyncio
import base64
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import attention_branch as ab
from attention_branch.errors import UserError
from attention_branch.models.preprocessing import Preprocessing
from attention_branch.serve.gallery import FolderPictures
from attention_branch.serve.run import load_predictor
from attention_branch.serve.uploads import Limits, read_upload
from serving import CLASSES, Server, encoded, picture, saved_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "saved"
    return saved_model(folder), folder


@pytest.fixture(scope="module")
def predictor(model):
    return load_predictor(model[1])


@pytest.fixture
def server(predictor, tmp_path):
    made = Server(predictor, tmp_path / "annotations", limits=Limits(body=2**20, images=8, pixels=10_000))
    yield made
    made.close()


def answer(model, image):
    with torch.no_grad():
        return model(model.preprocessing.tensor(image.convert("RGB"))[None])


def test_a_refused_picture_leaves_nothing_of_what_it_became(server):
    """An unpacked comment in a frame of the error would stay until the collector comes by."""
    held = PngInfo()
    held.add_text("comment", "x" * 2_000_000, zip=True)
    buffer = BytesIO()
    picture().save(buffer, "PNG", pnginfo=held)
    with pytest.raises(UserError) as refused:
        asyncio.run(server.state.decode(buffer.getvalue(), "a.png"))
    assert refused.value.__context__ is None
    trace, largest = refused.value.__traceback__, 0
    while trace is not None:
        sizes = [len(value) for value in trace.tb_frame.f_locals.values() if isinstance(value, bytes | bytearray)]
        largest, trace = max([largest, *sizes]), trace.tb_next
    assert largest <= len(buffer.getvalue())


class TestPredict:
    def test_several_pictures_get_the_networks_own_answers_in_order(self, model, server):
        pictures = [picture(seed) for seed in range(5)]
        reply = server.send(*map(encoded, pictures), maps="array")
        assert reply.status_code == 200
        results = reply.json()["results"]
        assert [result["file"] for result in results] == [f"{number}.png" for number in range(5)]
        for image, result in zip(pictures, results, strict=True):
            own = answer(model[0], image)
            shares = own.logits.softmax(1)[0]
            assert result["probabilities"] == pytest.approx(shares.tolist(), abs=1e-5)
            assert result["prediction"]["class"] == CLASSES[int(shares.argmax())]
            assert result["attention_branch"]["index"] == int(own.attention_logits.argmax())
            assert np.array(result["maps"][0]["values"]) == pytest.approx(own.attention[0, 0].numpy(), abs=1e-5)
            assert (result["width"], result["height"]) == (48, 40)

    def test_one_picture_may_be_the_body_itself(self, model, server):
        image = picture(1)
        reply = server.client.post("/v1/predict", content=encoded(image), headers={"content-type": "image/png"})
        shares = answer(model[0], image).logits.softmax(1)[0]
        assert reply.json()["results"][0]["probabilities"] == pytest.approx(shares.tolist(), abs=1e-5)

    def test_a_map_as_png_holds_the_map_in_255_steps(self, model, server):
        image = picture(2)
        text = server.send(encoded(image), maps="png").json()["results"][0]["maps"][0]["png"]
        levels = np.asarray(Image.open(BytesIO(base64.b64decode(text))))
        own = answer(model[0], image).attention[0, 0].numpy()
        assert levels.shape == own.shape
        assert np.abs(levels / 255 - own).max() <= 0.5 / 255 + 1e-6

    def test_the_record_names_picture_weights_preprocessing_and_versions(self, model, server):
        import hashlib

        content = encoded(picture(3))
        result = server.send(content).json()["results"][0]
        assert result["image_sha256"] == hashlib.sha256(content).hexdigest()
        weights = (model[1] / "model.safetensors").read_bytes()
        assert result["model_sha256"] == hashlib.sha256(weights).hexdigest()
        assert result["preprocessing"]["size"] == [32, 32]
        assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert "image_sha256" not in server.send(content, record=False).json()["results"][0]

    def test_a_broken_picture_among_good_ones_is_said_in_its_place(self, server):
        reply = server.send(encoded(picture()), b"no picture", encoded(picture(1)))
        assert reply.status_code == 200
        kinds = ["error" in result for result in reply.json()["results"]]
        assert kinds == [False, True, False]

    @pytest.mark.parametrize(
        ("content", "status", "said"),
        [
            (b"", 422, "empty"),
            (b"GIF89a", 422, "no picture"),
            (encoded(picture())[:200], 422, "broken"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "SVG"),
            (b"%!PS-Adobe-3.0 EPSF-3.0", 422, "PostScript"),
            (encoded(picture(size=(200, 200))), 422, "pixels"),
            (encoded(picture(), "TGA"), 422, "no picture"),
            (encoded(picture(), "PPM"), 422, "no picture"),
            (b"x" * (2**20 + 1), 413, "bytes"),
        ],
    )
    def test_what_cannot_be_read_gets_one_sentence(self, server, content, status, said):
        reply = server.send(content)
        assert reply.status_code == status
        error = reply.json()["error"]
        assert said in error["message"]
        assert error["status"] == status
        assert server.send(encoded(picture())).status_code == 200

    def test_other_bodies_and_parameters_are_refused(self, server):
        client = server.client
        assert client.post("/v1/predict", json={"image": "x"}).status_code == 415
        assert client.post("/v1/predict", data={"files": "text"}).status_code == 415
        assert client.post("/v1/predict", files={}, data={"a": "b"}).status_code in (415, 422)
        assert server.send(encoded(picture()), maps="gif").status_code == 422
        assert server.send(encoded(picture()), top=0).status_code == 422
        assert server.send(*[encoded(picture())] * 9).status_code == 400
        bad = client.post(
            "/v1/predict", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert bad.status_code in (400, 422)

    def test_a_picture_lying_on_its_side_is_turned_as_viewers_do(self, model, server):
        image = picture(4)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by a quarter
        buffer = BytesIO()
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
        result = server.send(buffer.getvalue()).json()["results"][0]
        assert (result["width"], result["height"]) == (48, 40)
        assert result["probabilities"] == pytest.approx(answer(model[0], image).logits.softmax(1)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_long_thin_picture_is_refused_before_it_is_scaled(size):
    # 4000 times 1 pixel: at 256 pixels of the shorter side it would have a million of the other.
    seen = Preprocessing(size=(224, 224), resize="crop")
    with pytest.raises(UserError, match="long and thin"):
        read_upload(encoded(picture(size=size)), "a.png", seen, Limits())
    squashed = Preprocessing(size=(224, 224), resize="squash")
    assert read_upload(encoded(picture(size=size)), "a.png", squashed, Limits()).array.shape == (3, 224, 224)


class TestOtherRoutes:
    def test_health_model_and_descriptions(self, server):
        client = server.client
        assert client.get("/healthz").json() == {"status": "ok"}
        facts = client.get("/v1/model").json()
        assert facts["classes"] == {"label": CLASSES}
        assert {"attention", "attention-class", "cam", "grad-cam"} <= set(facts["methods"])
        described = client.get("/openapi.json").json()
        assert {"/v1/predict", "/v1/images/{key}/answer", "/v1/annotations"} <= set(described["paths"])
        page = client.get("/docs").text
        assert "/v1/predict" in page
        assert "cdn" not in page

    def test_metrics_count_requests_images_and_refusals(self, server):
        server.send(encoded(picture()), encoded(picture(1)))
        server.send(b"x" * (2**20 + 1))
        server.send(b"bad")
        text = server.client.get("/metrics").text
        assert 'abn_requests_total{route="/v1/predict",status="200"} 1.0' in text
        assert 'abn_refused_total{status="413"} 1.0' in text
        assert "abn_batch_images_sum 2.0" in text
        assert "abn_bad_images_total 1.0" in text

    def test_unknown_paths_and_paths_that_climb_are_not_found(self, server):
        for path in ("/nothing", "/page/../api.py", "/page/%2e%2e%2fapi.py", "/page/..%2f..%2fcli.py", "//etc/passwd"):
            assert server.client.get(path).status_code == 404
        unknown = [line for line in server.client.get("/metrics").text.splitlines() if "passwd" in line]
        assert unknown == []


class TestQuestions:
    def test_a_given_map_gives_what_the_network_gives_for_it(self, model, server):
        image = picture(5)
        opened = server.open(encoded(image))
        assert opened.status_code == 201
        given = np.zeros((16, 16))
        given[:, :8] = 1
        reply = server.client.post(f"/v1/images/{opened.json()['id']}/answer", json={"maps": {"label": given.tolist()}})
        images = model[0].preprocessing.tensor(image)[None]
        with torch.no_grad():
            own = model[0](images, attention=torch.tensor(given)[None].float()).logits.softmax(1)[0]
        assert reply.json()["probabilities"] == pytest.approx(own.tolist(), abs=1e-5)
        before = model[0](images).logits.softmax(1)[0].tolist()
        assert reply.json()["probabilities"] != pytest.approx(before, abs=1e-3)

    def test_its_own_map_given_back_changes_nothing(self, server):
        opened = server.open(encoded(picture(6))).json()
        reply = server.client.post(
            f"/v1/images/{opened['id']}/answer", json={"maps": {"label": opened["maps"][0]["values"]}}
        )
        assert reply.json()["probabilities"] == pytest.approx(opened["probabilities"], abs=1e-5)

    @pytest.mark.parametrize("method", ["attention", "attention-class", "cam", "grad-cam"])
    def test_maps_are_those_of_explain(self, model, server, method):
        image = picture(7)
        key = server.open(encoded(image)).json()["id"]
        target = "horse" if method != "attention" else None
        query = {"method": method} | ({"target": target} if target else {})
        reply = server.client.get(f"/v1/images/{key}/map", params=query).json()
        own = ab.explain(model[0], image, method, target)
        assert np.array(reply["values"]) == pytest.approx(own.raw[0].numpy(), abs=2e-5)
        assert reply["layer"] == own.layer
        assert (reply["target"] or {}).get("class") == target

    def test_a_class_by_number_is_not_taken_for_a_name(self, tmp_path):
        """Folders named by number: the class at place 2 is not the one called 2."""
        numbers = ["1", "2", "10"]
        network = saved_model(tmp_path / "numbers", class_names=numbers)
        served = Server(tmp_path / "numbers", tmp_path / "annotations")
        image = picture(7)
        key = served.open(encoded(image)).json()["id"]
        path = f"/v1/images/{key}/map"
        for index, name in enumerate(numbers):
            reply = served.client.get(path, params={"method": "cam", "index": index}).json()
            assert reply["target"] == {"class": name, "index": index}
            own = ab.explain(network, image, "cam", index)
            assert np.array(reply["values"]) == pytest.approx(own.raw[0].numpy(), abs=2e-5)
        for query in ({"index": 3}, {"index": -1}, {"index": 1, "target": "2"}):
            assert served.client.get(path, params={"method": "cam"} | query).status_code == 422
        served.close()

    def test_the_record_holds_what_was_asked(self, server):
        key = server.open(encoded(picture(8)), "../../a b.png").json()["id"]
        rows = np.full((16, 16), 0.25).tolist()
        server.client.post(f"/v1/images/{key}/answer", json={"maps": {"label": rows}})
        reply = server.client.get(f"/v1/images/{key}/record")
        assert reply.headers["content-disposition"] == 'attachment; filename="a-b.json"'
        assert reply.json()["file"] == "a b.png"
        assert reply.json()["asked"][0]["mean_of_map"] == [0.25]

    def test_the_reading_names_both_branches_and_the_place(self, model, server):
        opened = server.open(encoded(picture(9))).json()
        sentences = server.client.get(f"/v1/images/{opened['id']}/reading").json()["sentences"]
        text = " ".join(sentence["text"] for sentence in sentences)
        assert f"'{opened['prediction']['class']}'" in text
        assert f"'{opened['attention_branch']['class']}'" in text or "the same" in text
        assert "which class" in text

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ('{"maps": {"label": [[0, 1]]}}', "16 rows"),
            ('{"maps": {"label": ' + str([[2.0] * 16] * 16) + "}}", "0 to 1"),
            ('{"maps": {"tail": ' + str([[0.5] * 16] * 16) + "}}", "no head"),
            ('{"maps": 3}', "maps"),
            ('{"maps": {"label": ' + json.dumps([["x"] * 16] * 16) + "}}", "number"),
            ("[" * 100_000, "JSON"),
            ("nonsense", "JSON"),
            ('{"maps": {"label": ' + json.dumps([[float("nan")] * 16] * 16) + "}}", "0 to 1"),
        ],
    )
    def test_maps_that_do_not_fit_are_refused(self, server, body, said):
        key = server.open(encoded(picture())).json()["id"]
        reply = server.client.post(
            f"/v1/images/{key}/answer", content=body, headers={"content-type": "application/json"}
        )
        assert reply.status_code == 422
        assert said in reply.json()["error"]["message"]

    def test_images_that_are_not_open_are_not_found(self, server):
        for path in ("", "/view.png", "/map", "/record", "/reading"):
            assert server.client.get(f"/v1/images/nothing{path}").status_code == 404

    def test_unknown_methods_classes_and_heads_are_refused(self, server):
        key = server.open(encoded(picture())).json()["id"]
        long = {"method": "cam", "target": "1" * 5000}
        for query in ({"method": "magic"}, {"method": "cam", "target": "cow"}, {"method": "cam", "head": "x"}, long):
            reply = server.client.get(f"/v1/images/{key}/map", params=query)
            assert reply.status_code == 422
            assert len(reply.text) < 500

    def test_long_names_are_refused_before_they_are_compared(self, server):
        key = server.open(encoded(picture())).json()["id"]
        reply = server.client.post(f"/v1/images/{key}/answer", json={"maps": {"A" * 500_000: [[0.0]]}})
        assert reply.status_code == 422
        assert len(reply.text) < 500

    def test_the_longest_unused_images_are_dropped_first(self, server):
        server.state.cases.most = 2
        keys = [server.open(encoded(picture(seed))).json()["id"] for seed in range(2)]
        server.client.get(f"/v1/images/{keys[0]}")
        server.open(encoded(picture(3)))
        assert server.client.get(f"/v1/images/{keys[0]}").status_code == 200
        assert server.client.get(f"/v1/images/{keys[1]}").status_code == 404


class TestCorrections:
    def drawn(self):
        levels = np.zeros((32, 32), np.uint8)
        levels[8:16, 16:24] = 255
        return base64.b64encode(encoded(Image.fromarray(levels))).decode()

    def test_a_saved_map_is_an_annotation_in_the_pictures_pixels(self, model, server):
        from attention_branch.annotations import read_annotations

        content = encoded(picture(0, (64, 64)))
        key = server.open(content).json()["id"]
        reply = server.client.post(f"/v1/images/{key}/annotation", json={"map": self.drawn(), "label": "dog"})
        assert reply.status_code == 201
        (found,) = read_annotations(server.state.annotations)
        assert found.name == reply.json()["name"]
        assert found.label == "dog"
        assert found.image.read_bytes() == content
        values = found.values()
        assert values.shape == (64, 64)
        # The network sees 28/32 of the middle (crop_pct 0.875): the box's middle, 20/32 and 12/32 of the view.
        scale, corner = server.predictor.facts.preprocessing.geometry((64, 64))
        row, column = (
            int((place + edge) / factor) for place, edge, factor in zip((12, 20), corner, scale, strict=True)
        )
        assert values[row, column] == 1
        assert values[column, row] == 0
        assert found.record["before"]["prediction"]["class"] in CLASSES
        # The answer with the saved map is the network's own for it.
        given = torch.zeros(1, 16, 16)
        given[:, 4:8, 8:12] = 1
        with torch.no_grad():
            own = model[0](model[0].preprocessing.tensor(picture(0, (64, 64)))[None], attention=given).logits.softmax(1)
        assert found.record["after"]["prediction"]["probability"] == pytest.approx(float(own.max()), abs=1e-4)

    def test_saved_maps_are_listed_reopened_and_removed(self, server):
        key = server.open(encoded(picture(0, (64, 64)))).json()["id"]
        name = server.client.post(f"/v1/images/{key}/annotation", json={"map": self.drawn()}).json()["name"]
        assert [item["name"] for item in server.client.get("/v1/annotations").json()["annotations"]] == [name]
        again = server.client.post("/v1/images", json={"annotation": name})
        assert again.status_code == 201
        assert again.json()["saved"]["head"] is None
        levels = np.asarray(Image.open(BytesIO(server.client.get(f"/v1/annotations/{name}/view.png").content)))
        assert levels.shape == (32, 32)
        assert levels[12, 20] > 200
        assert levels[20, 12] < 50
        assert Image.open(BytesIO(server.client.get(f"/v1/annotations/{name}/overlay.png").content)).size[0] > 100
        assert server.client.delete(f"/v1/annotations/{name}").status_code == 204
        assert server.client.get("/v1/annotations").json()["annotations"] == []
        assert server.client.get(f"/v1/annotations/{name}").status_code == 404

    def test_names_that_climb_are_not_found(self, server):
        for name in ("..", "..%2f..%2fmodel%2fconfig", "%2e%2e", "a%00b", ".hidden"):
            for path in (f"/v1/annotations/{name}/map.png", f"/v1/annotations/{name}"):
                assert server.client.get(path).status_code in (404, 405)

    @pytest.mark.parametrize("body", [{"map": "?"}, {"map": "aGFsbG8="}, {"label": "dog"}])
    def test_maps_that_are_none_are_refused(self, server, body):
        key = server.open(encoded(picture())).json()["id"]
        assert server.client.post(f"/v1/images/{key}/annotation", json=body).status_code == 422

    def test_labels_are_checked_against_the_classes(self, server):
        key = server.open(encoded(picture())).json()["id"]
        reply = server.client.post(f"/v1/images/{key}/annotation", json={"map": self.drawn(), "label": "dgo"})
        assert reply.status_code == 422
        assert "'dog'" in reply.json()["error"]["message"]
        assert not (server.state.annotations / "annotations").exists()


class TestQueue:
    @pytest.fixture
    def folder(self, tmp_path):
        for number in range(12):
            place = tmp_path / "photos" / CLASSES[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            picture(number).save(place / f"{number}.png")
        (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"no picture")
        return tmp_path / "photos"

    @pytest.fixture
    def served(self, predictor, folder, tmp_path):
        pictures = FolderPictures([str(folder)], predictor.facts)
        made = Server(predictor, tmp_path / "annotations", pictures=pictures, batch=4)
        made.state.gallery._thread.join(timeout=60)
        yield made
        made.close()

    def test_the_worst_come_first_by_their_loss(self, model, served):
        reply = served.client.get("/v1/queue", params={"order": "worst"}).json()
        losses = []
        for item in reply["items"]:
            image = Image.open(item["name"])
            own = answer(model[0], image).logits.log_softmax(1)[0]
            index = CLASSES.index(item["label"]["label"])
            assert item["loss"] == pytest.approx(-own[index].item(), abs=1e-4)
            assert item["correct"] == (int(own.argmax()) == index)
            losses.append(item["loss"])
        assert len(losses) == 12
        assert losses == sorted(losses, reverse=True)
        assert (reply["broken"], reply["seen"], reply["pictures"]) == (1, 13, 13)

    def test_filters_by_state_and_class(self, served):
        def names(**query):
            return {item["name"] for item in served.client.get("/v1/queue", params=query).json()["items"]}

        every = names(state="all")
        assert names(state="wrong") < every
        assert all("/dog/" in name for name in names(state="all", **{"class": "dog"}) - names(state="wrong"))
        first = served.client.get("/v1/queue").json()["items"][0]
        assert served.client.put(f"/v1/queue/{first['index']}", json={"state": "skipped"}).status_code == 204
        assert names(state="skipped") == {first["name"]}
        assert first["name"] not in names(state="todo")
        served.client.put(f"/v1/queue/{first['index']}", json={"state": "todo"})
        assert first["name"] in names(state="todo")

    def test_an_annotated_picture_leaves_the_list(self, served):
        index = served.client.get("/v1/queue").json()["items"][0]["index"]
        opened = served.client.post("/v1/images", json={"queue": index}).json()
        assert opened["label"]["label"] in CLASSES
        body = {"map": TestCorrections().drawn(), "label": opened["label"]["label"]}
        assert served.client.post(f"/v1/images/{opened['id']}/annotation", json=body).status_code == 201
        found = served.client.get("/v1/queue", params={"state": "annotated"}).json()["items"]
        assert [item["index"] for item in found] == [index]

    def test_the_queue_goes_on_where_it_stopped(self, predictor, served, folder, tmp_path):
        index = served.client.get("/v1/queue").json()["items"][0]["index"]
        opened = served.client.post("/v1/images", json={"queue": index}).json()
        served.client.post(f"/v1/images/{opened['id']}/annotation", json={"map": TestCorrections().drawn()})
        other = served.client.get("/v1/queue").json()["items"][0]["index"]
        served.client.put(f"/v1/queue/{other}", json={"state": "skipped"})
        before = served.client.get("/v1/queue").json()["items"]
        served.close()
        again = Server(predictor, tmp_path / "annotations", pictures=FolderPictures([str(folder)], predictor.facts))
        try:
            # What the network said was kept: nothing has to be looked at again but the broken file.
            assert len(again.state.gallery.entries) == 12
            assert again.client.get("/v1/queue").json()["items"] == before
        finally:
            again.close()

    def test_thumbnails_are_small_and_numbers_are_checked(self, served):
        content = served.client.get("/v1/queue/0/thumbnail.png").content
        assert max(Image.open(BytesIO(content)).size) <= 160
        assert served.client.get("/v1/queue/99/thumbnail.png").status_code == 422
        assert served.client.post("/v1/images", json={"queue": 99}).status_code == 422
        assert served.client.get("/v1/queue", params={"order": "best"}).status_code == 422

    def test_without_pictures_there_is_no_queue(self, server):
        assert server.client.get("/v1/queue").status_code == 404


class TestOtherNetworks:
    def test_several_heads_have_a_map_each_and_are_asked_one_by_one(self, tmp_path):
        names = {"fur": ["no", "yes"], "kind": CLASSES}
        model = saved_model(tmp_path / "m", num_classes=None, heads={"fur": 2, "kind": 3}, class_names=names)
        server = Server(tmp_path / "m", tmp_path / "a")
        image = picture(1)
        images = model.preprocessing.tensor(image)[None]
        opened = server.open(encoded(image)).json()
        with torch.no_grad():
            own = model(images)
            maps = own.attention.clone()
            maps[:, 1] = 0
            given = model(images, attention=maps).logits
        assert [item["head"] for item in opened["maps"]] == ["fur", "kind"]
        reply = server.client.post(
            f"/v1/images/{opened['id']}/answer", json={"maps": {"kind": np.zeros((16, 16)).tolist()}}
        ).json()
        for head in names:
            assert reply["heads"][head]["probabilities"] == pytest.approx(given[head].softmax(1)[0].tolist(), abs=1e-5)
        body = {"map": TestCorrections().drawn(), "label": {"kind": "dog"}, "head": "kind"}
        saved = server.client.post(f"/v1/images/{opened['id']}/annotation", json=body).json()
        assert saved["name"].endswith("-kind")
        assert saved["label"] == {"kind": "dog"}
        again = server.client.post("/v1/images", json={"annotation": saved["name"]}).json()
        assert again["saved"]["head"] == "kind"
        server.close()

    def test_a_head_of_one_logit_is_two_classes(self, tmp_path):
        model = saved_model(tmp_path / "m", num_classes=None, heads={"sick": 1, "kind": 3}, class_names=None)
        server = Server(tmp_path / "m", tmp_path / "a")
        image = picture(2)
        share = answer(model, image).logits["sick"].sigmoid().item()
        result = server.send(encoded(image)).json()["results"][0]["heads"]["sick"]
        assert server.client.get("/v1/model").json()["classes"] == {"sick": ["0", "1"], "kind": ["0", "1", "2"]}
        assert result["probabilities"] == pytest.approx([1 - share, share], abs=1e-5)
        assert result["prediction"]["index"] == int(share > 0.5)
        server.close()

    def test_a_plain_network_is_looked_at_and_not_questioned(self, tmp_path):
        saved_model(tmp_path / "m", baseline=True)
        server = Server(tmp_path / "m", tmp_path / "a")
        facts = server.client.get("/v1/model").json()
        assert "attention" not in facts["methods"]
        assert "cam" in facts["methods"]
        opened = server.open(encoded(picture())).json()
        assert opened["maps"] == []
        assert opened["attention_branch"] is None
        reply = server.client.post(f"/v1/images/{opened['id']}/answer", json={"maps": {"label": [[0.5]]}})
        assert reply.status_code == 422
        assert "no attention branch" in reply.json()["error"]["message"]
        sentences = server.client.get(f"/v1/images/{opened['id']}/reading").json()["sentences"]
        assert any("afterwards" in sentence["text"] for sentence in sentences)
        server.close()
