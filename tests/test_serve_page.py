"""The page in a real browser: open, draw, see the answer change, save, come back; by mouse, by keyboard, on a phone."""

import shutil
import socket
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from attention_branch.annotations import read_annotations, to_view
from attention_branch.serve.gallery import FolderPictures
from attention_branch.serve.run import load_predictor
from serving import CLASSES, Server, encoded, picture, saved_model

sync_api = pytest.importorskip("playwright.sync_api")
sync_api.expect.set_options(timeout=20_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH (Debian: apt install chromium)"),
]
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass
class Served:
    model: torch.nn.Module
    address: str
    server: Server
    pictures: list


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Serve a small network and nine pictures, one of them no picture, on a free port."""
    folder = tmp_path_factory.mktemp("page")
    model = saved_model(folder / "model", mechanism="product")
    for number in range(9):
        place = folder / "photos" / CLASSES[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        picture(number, (64, 64)).save(place / f"{number}.png")
    predictor = load_predictor(folder / "model")
    pictures = FolderPictures([str(folder / "photos")], predictor.facts)
    server = Server(predictor, folder / "annotations", pictures=pictures, batch=4)
    server.state.gallery._thread.join(60)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.application, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield Served(model, f"http://127.0.0.1:{listener.getsockname()[1]}/", server, pictures.paths)
    running.should_exit = True
    thread.join(20)
    server.close()
    listener.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        yield made
        made.close()


@pytest.fixture
def page(served, browser):
    """A fresh page on a laptop, whose errors fail the test."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(served.address)
    sync_api.expect(page.locator("#model")).to_contain_text("resnet14")
    yield page
    context.close()
    assert errors == []


def upload(page, image, name="mine.png"):
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": encoded(image)})
    sync_api.expect(page.locator("#reading li").first).to_be_visible()


def place(page, column, row):
    """Return where a share of the shown picture lies in the window; the picture is square and fits the frame."""
    box = page.locator("#stage").bounding_box()
    side = min(box["width"], box["height"]) - 16
    return (
        box["x"] + box["width"] / 2 + (column - 0.5) * side,
        box["y"] + box["height"] / 2 + (row - 0.5) * side,
    )


def drag(page, start, end):
    page.mouse.move(*place(page, *start))
    page.mouse.down()
    page.mouse.move(*place(page, *end), steps=8)
    page.mouse.up()


def asked(page, work):
    """Do something that asks the network; return the map that was sent, (h, w)."""
    with page.expect_response(lambda reply: reply.url.endswith("/answer")) as found:
        work()
    page.wait_for_timeout(300)
    return np.array(found.value.request.post_data_json["maps"]["label"])


def last_map(served, page):
    """Return the map that the page shows the answer to, as the server heard it last."""
    case = next(reversed(served.server.state.cases._cases.values()))
    return case.asked[-1]["mean_of_map"][0]


def test_an_uploaded_picture_gets_the_networks_answer_and_maps(served, page):
    image = picture(20, (64, 64))
    upload(page, image)
    with torch.no_grad():
        own = served.model(served.model.preprocessing.tensor(image)[None])
    shares = own.logits.softmax(1)[0]
    sync_api.expect(page.locator("#prediction")).to_have_text(CLASSES[int(shares.argmax())])
    sync_api.expect(page.locator("#probability")).to_have_text(f"{100 * shares.max():.1f} %")
    sync_api.expect(page.locator("#beside canvas")).to_have_count(len(served.server.predictor.facts.methods))
    low, high = own.attention.min(), own.attention.max()
    sync_api.expect(page.locator("#legend-what")).to_contain_text(f"from {low:.2f} to {high:.2f}")
    page.click("[data-method=cam]")
    page.select_option("#class", label="horse")
    sync_api.expect(page.locator("#legend-what")).to_contain_text("CAM for 'horse'")


def test_a_brush_stroke_changes_the_answer_to_that_of_the_network_with_that_map(served, page):
    image = picture(21, (64, 64))
    upload(page, image)
    page.click("#modes [data-mode=erase]")
    page.click("#shapes [data-shape=box]")
    sent = asked(page, lambda: drag(page, (0.02, 0.02), (0.98, 0.52)))
    assert sent[1:7, 1:15].max() < 1e-6
    images = served.model.preprocessing.tensor(image)[None]
    with torch.no_grad():
        own = served.model(images).attention[0, 0].numpy()
        shares = served.model(images, attention=torch.tensor(sent)[None].float()).logits.softmax(1)[0]
    # Below the box nothing was touched: there the map is the network's own, not a smoothed copy of it.
    assert sent[9:] == pytest.approx(own[9:], abs=1e-6)
    sync_api.expect(page.locator("#after-prediction")).to_have_text(CLASSES[int(shares.argmax())])
    sync_api.expect(page.locator("#after-probability")).to_have_text(f"{100 * shares.max():.1f} %")


def test_undo_redo_invert_clear_and_its_own_map(served, page):
    image = picture(22, (64, 64))
    upload(page, image)
    with torch.no_grad():
        own = served.model(served.model.preprocessing.tensor(image)[None]).attention[0, 0].numpy()
    assert asked(page, lambda: page.click("#clear")).max() == 0
    assert asked(page, lambda: page.click("#invert")).min() == 1
    assert asked(page, lambda: page.click("#undo")).max() == 0
    assert asked(page, lambda: page.click("#redo")).min() == 1
    page.click("#reset")
    sync_api.expect(page.locator("#after-line")).to_be_hidden()
    assert asked(page, lambda: page.click("#invert")) == pytest.approx(1 - own, abs=1e-6)
    page.keyboard.press("Control+z")
    sync_api.expect(page.locator("#after-line")).to_be_hidden()


def test_a_polygon_covers_what_it_encloses(served, page):
    upload(page, picture(23, (64, 64)))
    asked(page, lambda: page.click("#clear"))
    page.click("#shapes [data-shape=polygon]")
    for corner in ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75)):
        page.mouse.click(*place(page, *corner))
        page.wait_for_timeout(350)  # Two quick clicks would be a double click.
    sent = asked(page, lambda: page.mouse.click(*place(page, 0.25, 0.25)))
    # A right triangle over a quarter of the square's half: its area is 1/8 of the picture.
    assert sent.mean() == pytest.approx(1 / 8, abs=0.01)
    assert sent[5, 10] > 0.99
    assert sent[10, 5] < 0.01


def test_everything_can_be_done_from_the_keyboard(served, page):
    upload(page, picture(24, (64, 64)))
    page.focus("#stage")
    assert asked(page, lambda: page.keyboard.press("c")).max() == 0
    page.keyboard.press("ArrowLeft")
    sent = asked(page, lambda: page.keyboard.press("Enter"))
    row, column = np.unravel_index(sent.argmax(), sent.shape)
    assert abs(row - 7.5) <= 1
    assert 5 <= column <= 8
    page.keyboard.press("x")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
    more = asked(page, lambda: page.keyboard.press("Enter"))
    assert more.sum() > sent.sum() + 1
    page.keyboard.press("+")
    sync_api.expect(page.locator("#zoom")).to_have_text("125 %")
    page.focus("#tab-look")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#view-queue")).to_be_visible()
    focused = page.evaluate("document.activeElement.id")
    assert focused == "tab-queue"


def test_a_saved_map_survives_and_comes_back(served, page):
    image = picture(25, (64, 64))
    upload(page, image, "barn.png")
    page.click("#clear")
    page.click("#shapes [data-shape=box]")
    asked(page, lambda: drag(page, (0.5, 0.0), (1.0, 0.5)))
    page.select_option("#label", "dog")
    page.fill("#note", "the barn")
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    (found,) = [
        item for item in read_annotations(served.server.state.annotations) if item.record["source"] == "barn.png"
    ]
    assert (found.label, found.record["note"]) == ("dog", "the barn")
    assert [shape["type"] for shape in found.record["shapes"]] == ["clear", "box"]
    values = found.values()
    assert values[20, 44] == 1  # right above the middle, inside of what the network sees
    assert values[20, 20] == 0
    assert values[44, 44] == 0
    page.reload()
    sync_api.expect(page.locator("#reading li").first).to_be_visible()  # The address remembers the open picture.
    page.click("#tab-saved")
    with page.expect_response(lambda reply: reply.url.endswith("/answer")) as reopened:
        page.locator("#saved-items button.tile", has_text="barn.png").click()
    sent = np.array(reopened.value.request.post_data_json["maps"]["label"])
    assert sent[3, 12] > 0.95
    assert sent[12, 3] < 0.05
    sync_api.expect(page.locator("#label")).to_have_value("dog")
    page.click("#tab-saved")
    page.once("dialog", lambda dialog: dialog.accept())
    tile = page.locator("#saved-items li", has_text="barn.png")
    tile.get_by_role("button", name="Remove").click()
    sync_api.expect(tile).to_have_count(0)


def test_a_broken_annotation_is_said_and_can_be_removed(served, page):
    broken = served.server.state.annotations / "annotations" / "torn.json"
    broken.parent.mkdir(parents=True, exist_ok=True)
    broken.write_text("{")
    page.click("#tab-saved")
    tile = page.locator("#saved-items li", has_text="torn.json")
    page.once("dialog", lambda dialog: dialog.accept())
    tile.get_by_role("button", name="Remove the map of torn").click()
    sync_api.expect(tile).to_have_count(0)
    assert not broken.exists()


def test_the_queue_shows_the_worst_first_and_goes_on(served, page):
    page.click("#tab-queue")
    sync_api.expect(page.locator("#queue-items li")).to_have_count(9)
    names = page.locator("#queue-items .name").all_inner_texts()
    losses = []
    for name in names:
        image = Image.open(name)
        with torch.no_grad():
            own = served.model(served.model.preprocessing.tensor(image.convert("RGB"))[None]).logits.log_softmax(1)[0]
        losses.append(-own[CLASSES.index(name.split("/")[-2])].item())
    assert losses == sorted(losses, reverse=True)
    page.locator("#queue-items button.tile").first.click()
    sync_api.expect(page.locator("#truth")).to_contain_text(names[0].split("/")[-2])
    page.click("#skip")
    sync_api.expect(page.locator("#trace")).to_contain_text(names[1].split("/")[-1])
    page.reload()
    sync_api.expect(page.locator("#trace")).to_contain_text(names[1].split("/")[-1])
    page.click("#tab-queue")
    page.select_option("#state", "skipped")
    sync_api.expect(page.locator("#queue-items .name")).to_have_text(names[:1])
    page.locator("#queue-items").get_by_role("button", name="Take back").click()
    sync_api.expect(page.locator("#queue-items li")).to_have_count(0)


def test_what_is_no_picture_is_said_and_the_page_goes_on(served, page):
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    sync_api.expect(page.locator("#message")).to_contain_text("no picture")
    upload(page, picture(26, (64, 64)))
    sync_api.expect(page.locator("#message")).to_be_hidden()


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_finger_draws(served, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(served.address)
    sync_api.expect(page.locator("#model")).to_contain_text("resnet14")
    upload(page, picture(27, (64, 64)))
    page.locator("#stage").scroll_into_view_if_needed()
    sent = asked(page, lambda: page.touchscreen.tap(*place(page, 0.5, 0.5)))
    assert sent.shape == (16, 16)
    sync_api.expect(page.locator("#strip")).to_contain_text("with your map")
    for tab in ("look", "queue", "saved"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(200)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    context.close()


def test_every_control_has_a_name(page):
    upload(page, picture(28, (64, 64)))
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, select, input')].filter(control =>
           !(control.textContent.trim() || control.getAttribute('aria-label') || control.title
             || (control.labels && control.labels.length))).map(control => control.outerHTML)"""
    )
    assert nameless == []


def test_a_stroke_is_answered_while_the_next_is_drawn(served, page):
    upload(page, picture(29, (64, 64)))
    begun = time.monotonic()
    for number in range(5):
        drag(page, (0.1 + 0.15 * number, 0.2), (0.1 + 0.15 * number, 0.8))
    page.wait_for_timeout(1000)
    shown = page.locator("#stroke-time").inner_text()
    assert shown.endswith("ms")
    assert time.monotonic() - begun < 60
    heard = last_map(served, page)
    # Saving works out the map of the page once more: what was asked last was that of all five strokes.
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    case = next(reversed(served.server.state.cases._cases.values()))
    (found,) = [
        item
        for item in read_annotations(served.server.state.annotations)
        if item.record["image_sha256"] == case.upload.digest
    ]
    view = to_view(found.values(), served.model.preprocessing)
    assert heard == pytest.approx(float(view.mean()), abs=0.01)
