import io
import pickle

import numpy as np
import pytest
from PIL import Image

from attention_branch.data import find_images, open_image
from attention_branch.data.images import natural_key
from attention_branch.errors import UserError


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content):
    picture = open_image(content)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert pixels(encoded(Image.fromarray(values), kind))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_deep_tiffs():
    floats = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert pixels(encoded(floats, "TIFF"))[0, :, 1].tolist() == [0, 128, 255]
    integers = Image.fromarray(np.array([[-100, 0, 100]], dtype=np.int32))
    assert pixels(encoded(integers, "TIFF"))[0, :, 1].tolist() == [0, 128, 255]
    bad = Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(UserError, match="not all finite"):
        open_image(encoded(bad, "TIFF"))


def test_alpha_is_laid_on_white():
    rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(rgba)))[0].tolist() == [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    grey_alpha = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(grey_alpha, "LA")))[0].tolist() == [[10] * 3, [255] * 3]


def test_palette_with_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    assert pixels(encoded(picture))[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert pixels(encoded(picture, transparency=0))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_grey_bilevel_and_cmyk():
    assert pixels(encoded(Image.new("L", (2, 2), 77)))[0, 0].tolist() == [77] * 3
    assert pixels(encoded(Image.new("1", (2, 2), 1)))[0, 0].tolist() == [255] * 3
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(cmyk, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    shown = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)), shown)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


def test_truncated_empty_missing_and_other_files_are_named(tmp_path):
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), "JPEG")
    cases = {
        "cut.jpg": (content[: len(content) // 2], "is broken"),
        "empty.png": (b"", "is empty"),
        "text.png": (b"hello, I am no picture", "is no picture"),
        "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"></svg>', "SVG"),
        "phone.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(64), "HEIC"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "web page"),
        "paper.pdf": (b"%PDF-1.7 ...", "PDF"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "PostScript"),
    }
    for name, (data, says) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=says) as caught:
            open_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no picture.*Did you mean 'cut.jpg'"):
        open_image(tmp_path / "cat.jpg")
    with pytest.raises(UserError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [59_999, 20_000])
def test_bombs_are_refused_from_the_header(monkeypatch, limit):
    content = encoded(Image.new("L", (300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    assert open_image(content).size == (300, 200)
    # The header alone decides: without the pixels' bytes the answer is the same.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=f"'bomb.png'.*{limit} pixels allowed"):
        open_image(content[:60], "bomb.png")


def test_natural_order():
    names = ["b10", "B9", "b9a2", "b9a10", "a", "10", "9", "09"]
    assert sorted(names, key=natural_key) == ["09", "9", "10", "a", "B9", "b9a2", "b9a10", "b10"]


def test_pickles_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    with pytest.raises(UserError, match="no picture"):
        open_image(pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()


def test_find_images(tmp_path):
    for name in ("b/10.png", "b/9.PNG", "a.jpg", ".hidden.png", "note.txt", ".git/x.png", "__MACOSX/y.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(arguments):
        return [path.relative_to(tmp_path).as_posix() for path in find_images(arguments)]

    assert names(tmp_path) == ["a.jpg", "b/9.PNG", "b/10.png"]
    assert names([tmp_path / "b", tmp_path / "a.jpg", tmp_path / "b/10.png"]) == ["b/9.PNG", "b/10.png", "a.jpg"]
    assert names(str(tmp_path / "**" / "*.png")) == ["b/10.png"]
    assert names([tmp_path / "note.txt"]) == ["note.txt"]
    with pytest.raises(UserError, match="No picture matches"):
        find_images(str(tmp_path / "*.bmp"))
    with pytest.raises(UserError, match=r"Did you mean 'a.jpg'"):
        find_images(str(tmp_path / "aa.jpg"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        find_images(tmp_path / "nothing")


def test_linked_folders_are_searched_once(tmp_path):
    (tmp_path / "real").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "real" / "1.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    assert len(find_images(tmp_path)) == 1
