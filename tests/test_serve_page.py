"""The page in a real browser: open, draw, see the answer change, save, come back; by mouse, by keyboard, on a phone."""

import hashlib
import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from attention_branch.annotations import (
    annotation_names,
    delete_annotation,
    read_annotations,
    to_view,
    write_annotation,
)
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


def held(served):
    """Return how many annotations the server has."""
    return len(annotation_names(served.server.state.annotations))


@dataclass
class Served:
    model: torch.nn.Module
    address: str
    server: Server
    pictures: list


@contextmanager
def running(server):
    """Serve an application on a free port; close it in the end."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    process = uvicorn.Server(uvicorn.Config(server.application, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not process.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    process.should_exit = True
    thread.join(20)
    server.close()
    listener.close()


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
    with running(server) as address:
        yield Served(model, address, server, pictures.paths)


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
    sync_api.expect(page.locator("main[inert]")).to_have_count(0)
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


# --- what does not go as it should ---


def refuse(route):
    route.fulfill(status=503, json={"error": {"status": 503, "message": "It is too much."}})


def question(page, selector):
    """Click what asks before it goes on, answer no, and return what was asked."""
    heard = []

    def answer(dialog):
        heard.append(dialog.message)
        dialog.dismiss()

    page.once("dialog", answer)
    page.evaluate("selector => document.querySelector(selector).click()", selector)
    assert heard, "nothing was asked"
    return heard[0]


def tap(session, *points):
    """Put fingers down at places of the window, or lift all of them."""
    kind = "touchStart" if points else "touchEnd"
    given = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})


def show_list(page, state):
    """Show the list with a filter, and wait until it is there."""
    page.click("#tab-queue")
    page.select_option("#state", state)
    page.wait_for_timeout(300)  # The lists of the tab and of the filter; the next answer is that to Refresh.
    with page.expect_response(lambda reply: "/v1/queue?" in reply.url and f"state={state}&" in reply.url):
        page.click("#refresh")
    page.wait_for_timeout(200)


def from_queue(page, number, state="todo"):
    """Open a picture of the list; return the names in their order."""
    show_list(page, state)
    names = page.locator("#queue-items .name").all_inner_texts()
    page.locator("#queue-items button.tile").nth(number).click()
    sync_api.expect(page.locator("#trace")).to_contain_text(names[number].split("/")[-1])
    sync_api.expect(page.locator("#reading li").first).to_be_visible()
    return names


def test_a_drawing_is_never_asked_or_saved_for_another_picture(served, page):
    """A server that was started again with other pictures has another one under the same number."""
    from_queue(page, 0)
    # The maps beside would send the picture again too, and a saving that waits for theirs would share its refusal.
    sync_api.expect(page.locator("#beside canvas")).to_have_count(len(served.server.predictor.facts.methods))
    page.route("**/v1/images", lambda route: route.continue_(post_data='{"queue": 5}'))
    before = held(served)
    served.server.state.cases._cases.clear()
    page.click("#clear")
    sync_api.expect(page.locator("#message")).to_contain_text("has another picture in this place now")
    page.click("#save")
    sync_api.expect(page.locator("#message")).to_contain_text("has another picture in this place now")
    assert held(served) == before
    page.unroute("**/v1/images")
    page.click("#save")  # its own picture again
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    assert held(served) == before + 1


def test_a_saved_drawing_that_cannot_be_loaded_opens_nothing(served, page):
    image = picture(40, (64, 64))
    name = write_annotation(served.server.state.annotations, encoded(image), np.zeros((64, 64)), label="cat").name
    upload(page, picture(41, (64, 64)), "before.png")
    page.route("**/annotations/*/view.png", refuse)
    page.click("#tab-saved")
    page.locator(f"#saved-items button.tile:has(img[src*='{name}'])").click()
    sync_api.expect(page.locator("#message")).to_contain_text("could not be loaded")
    sync_api.expect(page.locator("#trace")).to_contain_text("before.png")


def test_a_message_is_seen_wherever_the_page_is_scrolled_to(served, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(served.address)
    upload(page, picture(42, (64, 64)))
    page.route("**/annotation", refuse)
    page.locator("#save").scroll_into_view_if_needed()
    page.click("#save")
    sync_api.expect(page.locator("#message")).to_contain_text("It is too much.")
    sync_api.expect(page.locator("#message")).to_be_in_viewport()
    context.close()


def test_the_end_of_the_list_is_said_and_the_drawing_stays_unsaved(served, page):
    names = from_queue(page, 0, "all")
    from_queue(page, len(names) - 1, "all")
    asked(page, lambda: page.click("#clear"))
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#next")
    sync_api.expect(page.locator("#message")).to_contain_text("last picture of the list")
    assert "not saved" in question(page, "#queue-items button.tile")


def test_two_fingers_zoom_and_draw_nothing(served, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(served.address)
    upload(page, picture(43, (64, 64)))
    page.locator("#stage").scroll_into_view_if_needed()
    session = context.new_cdp_session(page)
    questions = []
    page.on("request", lambda request: questions.append(request.url) if request.url.endswith("/answer") else None)

    def pinch():
        tap(session, place(page, 0.4, 0.5))
        tap(session, place(page, 0.4, 0.5), place(page, 0.6, 0.5))
        for share in (0.65, 0.7, 0.75):
            points = [place(page, 1 - share, 0.5), place(page, share, 0.5)]
            given = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": given})
        tap(session)

    page.click("[data-method=cam]")
    pinch()
    sync_api.expect(page.locator("#zoom")).not_to_have_text("100 %")
    page.wait_for_timeout(500)
    assert questions == []
    assert page.get_attribute("[data-method=cam]", "aria-checked") == "true"
    page.click("#zoom-fit")
    page.click("#shapes [data-shape=polygon]")
    page.evaluate("scrollTo(0, 0)")
    for corner in ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75)):
        page.touchscreen.tap(*place(page, *corner))
        page.wait_for_timeout(350)
    pinch()
    page.focus("#stage")
    sent = asked(page, lambda: page.keyboard.press("f"))  # the corners are still there, and no fourth
    with torch.no_grad():
        own = served.model(served.model.preprocessing.tensor(picture(43, (64, 64)))[None]).attention[0, 0].numpy()
    assert sent[5, 10] > 0.99
    assert sent[10, 5] == pytest.approx(own[10, 5], abs=1e-6)
    # One finger that moves draws.
    page.click("#shapes [data-shape=brush]")
    page.click("#zoom-fit")
    page.evaluate("scrollTo(0, 0)")

    def stroke():
        tap(session, place(page, 0.2, 0.8))
        for column in (0.3, 0.4):
            x, y = place(page, column, 0.8)
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y, "id": 0}]})
        tap(session)

    moved = asked(page, stroke) - sent
    assert np.unravel_index(moved.argmax(), moved.shape)[0] == 12
    assert moved.max() > 0.2
    context.close()


def test_a_map_that_comes_late_does_not_cover_the_drawing(served, page):
    upload(page, picture(44, (64, 64)))
    waiting = []
    page.route("**/map?method=cam*", lambda route: waiting.append(route))
    page.select_option("#scale", "stretched")
    page.evaluate("document.querySelector('#class').value = '1'")
    page.click("[data-method=cam]")
    page.wait_for_timeout(200)
    page.focus("#stage")
    asked(page, lambda: page.keyboard.press("c"))
    assert waiting
    for route in waiting:
        route.continue_()
    page.wait_for_timeout(500)
    assert page.get_attribute("[data-method=attention]", "aria-checked") == "true"
    sync_api.expect(page.locator("#legend-what")).to_contain_text("your map")


def test_annotations_of_other_networks_are_shown_as_far_as_they_go(served, page):
    image, folder = picture(45, (64, 64)), served.server.state.annotations
    half = np.zeros((64, 64))
    half[:, :32] = 1
    given = {"head": "colour", "record": {"source": "foreign.png", "shapes": "none", "note": 7}}
    write_annotation(folder, encoded(image), half, label={"colour": "red"}, **given)
    plain = {"record": {"source": "zebra.png"}}
    write_annotation(folder, encoded(picture(46, (64, 64))), half, label="zebra", **plain)
    page.click("#tab-saved")
    page.locator("#saved-items button.tile", has_text="foreign.png").click()
    sync_api.expect(page.locator("#after-line")).to_be_visible()
    sync_api.expect(page.locator("#reading li").first).to_be_visible()
    page.click("#tab-saved")
    page.locator("#saved-items button.tile", has_text="zebra.png").click()
    sync_api.expect(page.locator("#truth")).to_contain_text("'zebra', a class that this network does not have")
    sync_api.expect(page.locator("#label")).to_have_value("")
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")


def test_a_busy_server_is_asked_again_now_and_then(served, page):
    upload(page, picture(47, (64, 64)))
    questions = []

    def busy(route):
        questions.append(route.request.url)
        refuse(route)

    page.route("**/answer", busy)
    drag(page, (0.1, 0.5), (0.9, 0.5))
    drag(page, (0.5, 0.1), (0.5, 0.9))
    sync_api.expect(page.locator("#message")).to_contain_text("It is too much.")
    page.wait_for_timeout(1000)  # what the strokes themselves asked
    begun = len(questions)
    page.wait_for_timeout(4500)
    assert 1 <= len(questions) - begun <= 3
    page.unroute("**/answer")
    sync_api.expect(page.locator("#after-line")).to_be_visible()


def test_a_drawing_is_saved_for_its_own_picture_when_another_is_opened_meanwhile(served, page):
    for name in annotation_names(served.server.state.annotations):
        delete_annotation(served.server.state.annotations, name)
    from_queue(page, 0)
    source, waiting = page.locator("#trace dd").first.inner_text().split(",")[0], []
    page.route("**/v1/queue?*", lambda route: waiting.append(route))
    asked(page, lambda: page.click("#clear"))
    page.click("#save")
    page.once("dialog", lambda dialog: dialog.accept())
    upload(page, picture(50, (64, 64)), "other.png")
    sync_api.expect(page.locator("#trace")).to_contain_text("other.png")
    with page.expect_response(lambda reply: reply.url.endswith("/annotation")):
        for route in waiting:
            route.continue_()
    (saved,) = read_annotations(served.server.state.annotations)
    assert saved.record["source"].endswith(source)


def test_a_class_chosen_after_saving_is_not_lost_without_a_word(served, page):
    from_queue(page, 0, "all")
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    page.select_option("#label", "horse")
    sync_api.expect(page.locator("#saved-line")).to_have_text("")
    assert "not saved" in question(page, "#next")
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    asked(page, lambda: page.click("#clear"))
    sync_api.expect(page.locator("#saved-line")).to_have_text("")


def test_the_queue_goes_forward_after_saving_and_keeps_what_is_passed_over(served, page):
    for name in annotation_names(served.server.state.annotations):
        delete_annotation(served.server.state.annotations, name)
    names = [name.split("/")[-1] for name in from_queue(page, 0)]
    for number in (1, 2):
        page.click("#next")
        sync_api.expect(page.locator("#trace")).to_contain_text(names[number])
    page.click("#save")
    sync_api.expect(page.locator("#saved-line")).to_contain_text("Saved as")
    page.click("#next")
    sync_api.expect(page.locator("#trace")).to_contain_text(names[3])
    show_list(page, "all")
    tile = page.locator("#queue-items li", has_text=names[4])
    tile.get_by_role("button", name="Skip").click()
    sync_api.expect(tile.get_by_role("button", name="Take back")).to_be_focused()
    sync_api.expect(page.locator("#queue-items li")).to_have_count(9)
    tile.get_by_role("button", name="Take back").click()
    sync_api.expect(tile.get_by_role("button", name="Skip")).to_be_visible()


def test_a_map_that_fails_leaves_none_of_another_class(served, page):
    upload(page, picture(48, (64, 64)))
    page.click("[data-method=cam]")
    sync_api.expect(page.locator("#legend-what")).to_contain_text("CAM for")
    page.route("**/map?*", refuse)
    page.select_option("#class", label="horse")
    sync_api.expect(page.locator("#message")).to_contain_text("It is too much.")
    sync_api.expect(page.locator("#legend")).to_be_hidden()


def test_a_picture_that_the_server_dropped_is_sent_again_for_everything(served, page):
    upload(page, picture(49, (64, 64)), "dropped.png")
    served.server.state.cases._cases.clear()
    with page.expect_download() as download:
        page.click("#record")
    assert download.value.suggested_filename == "dropped.json"
    record = json.loads(download.value.path().read_text())
    assert record["image_sha256"] == hashlib.sha256(encoded(picture(49, (64, 64)))).hexdigest()
    served.server.state.cases._cases.clear()
    page.click("[data-method=cam]")
    page.select_option("#class", label="dog")
    sync_api.expect(page.locator("#legend-what")).to_contain_text("CAM for 'dog'")
    sync_api.expect(page.locator("#message")).to_be_hidden()


def test_nothing_can_be_clicked_before_the_page_is_ready(served, browser):
    page, waiting = browser.new_page(), []
    page.route("**/start.json", lambda route: waiting.append(route))
    page.goto(served.address)
    with pytest.raises(sync_api.TimeoutError):
        page.click("#tab-queue", timeout=500)
    waiting[0].continue_()
    page.click("#tab-queue")
    sync_api.expect(page.locator("#queue-items li").first).to_be_visible()
    page.close()


def test_a_network_without_a_branch_goes_through_the_queue(browser, tmp_path):
    saved_model(tmp_path / "plain", baseline=True)
    for number in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True)
        picture(number, (64, 64)).save(tmp_path / "photos" / f"{number}.png")
    predictor = load_predictor(tmp_path / "plain")
    server = Server(predictor, tmp_path / "annotations", pictures=FolderPictures([str(tmp_path)], predictor.facts))
    server.state.gallery._thread.join(60)
    with running(server) as address:
        page = browser.new_page()
        page.goto(address)
        page.click("#tab-queue")
        page.locator("#queue-items button.tile").first.click()
        sync_api.expect(page.locator("#correct-card")).to_be_hidden()
        first = page.locator("#trace").inner_text()
        page.click("#skip")
        sync_api.expect(page.locator("#trace")).not_to_have_text(first)
        page.close()
