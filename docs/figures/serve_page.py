"""Draw docs/pictures/serve.png and serve-phone.png: the page on a laptop and on a phone, in headless Chromium.

    python docs/figures/serve_page.py RUN [QUEUE_NUMBER] [LEFT TOP RIGHT BOTTOM]

RUN is a run of `abn demo --shortcut`; the picture is that of its queue with this number. A box, in shares of the
picture, is erased from the map.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

PICTURES = Path(__file__).parents[1] / "pictures"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def place(page: Page, column: float, row: float) -> tuple[float, float]:
    """Return where a share of the shown square picture lies in the window."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    side = min(box["width"], box["height"]) - 16
    return box["x"] + box["width"] / 2 + (column - 0.5) * side, box["y"] + box["height"] / 2 + (row - 0.5) * side


def draw(page: Page, address: str, number: int, box: tuple[float, float, float, float], path: Path) -> None:
    """Open a picture of the queue, erase a box from its map, and keep what the window shows."""
    page.goto(f"{address}#queue={number}")
    expect(page.locator("#reading li").first).to_be_visible(timeout=60_000)
    page.click("#modes [data-mode=erase]")
    page.click("#shapes [data-shape=box]")
    page.locator("#frame").scroll_into_view_if_needed()
    page.mouse.move(*place(page, *box[:2]))
    page.mouse.down()
    page.mouse.move(*place(page, *box[2:]), steps=5)
    page.mouse.up()
    expect(page.locator("#after-line")).not_to_be_empty()
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    print(path, page.locator("#prediction").inner_text(), "->", page.locator("#after-prediction").text_content())


def main(run: str, number: int, box: tuple[float, float, float, float]) -> None:
    """Serve the run and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        command = [sys.executable, "-m", "attention_branch.cli", "serve", run, "--port", "0", "--annotations", folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        found = None
        while found is None:
            found = re.search(r"http://\S+", process.stdout.readline())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        for name, size, phone in (("serve", (1366, 860), False), ("serve-phone", (390, 844), True)):
            context = browser.new_context(
                viewport={"width": size[0], "height": size[1]}, has_touch=phone, device_scale_factor=1
            )
            draw(context.new_page(), found[0], number, box, PICTURES / f"{name}.png")
            context.close()
        browser.close()
        process.terminate()
        process.wait()


if __name__ == "__main__":
    given = [float(value) for value in sys.argv[3:7]] or [0.0, 0.0, 0.3, 0.3]
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0, (given[0], given[1], given[2], given[3]))
