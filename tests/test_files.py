"""Writing files: whole or not at all, and one sentence about what the disk refuses."""

import errno
import os
import subprocess
import sys
import urllib.error

import pytest
from PIL import Image

from attention_branch.errors import UserError
from attention_branch.files import append_text, atomic_path, held_alone, read_json_lines, require_folder, write_text


@pytest.mark.parametrize("relative", [True, False])
def test_a_folder_in_the_place_of_a_file_is_said(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "page.html").mkdir(parents=True)
    target = "deep/page.html" if relative else tmp_path / "deep" / "page.html"
    for write in (write_text, append_text):
        with pytest.raises(UserError, match=r"page\.html' cannot be written \(Is a directory\)"):
            write(target, "text")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_what_is_wrong_elsewhere_comes_back_as_it_is(tmp_path):
    with pytest.raises(urllib.error.URLError), atomic_path(tmp_path / "a.bin"):
        raise urllib.error.URLError("no network")
    with pytest.raises(OSError, match="cannot write mode F"), atomic_path(tmp_path / "a.png") as path:
        Image.new("F", (2, 2)).save(path)
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "input.txt").read_text()
    with pytest.raises(UserError, match="cannot be written"), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.EIO, "Input/output error")
    assert not list(tmp_path.iterdir())


def test_a_place_for_no_folder(tmp_path, monkeypatch):
    assert require_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for place, words in (("file", "a file stands"), ("file/deeper", "a file stands"), ("x" * 300, "name too long")):
        with pytest.raises(UserError, match=words):
            require_folder(tmp_path / place)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="No permission to write"):
        require_folder(tmp_path / "new")

    def forbidden(*_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", "secret")

    monkeypatch.setattr("pathlib.Path.exists", forbidden)
    with pytest.raises(UserError, match="No permission to write"):
        require_folder(tmp_path / "new")


def test_names_as_long_as_they_can_be(tmp_path):
    for name in ("x" * 250 + ".json", "\u00e9" * 125 + ".txt"):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert len(list(tmp_path.iterdir())) == 2


def test_whole_lines_are_read_whatever_stands_beside_them(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": "x\xe2\x80\xa8y"}\n\xc3\n[1]\n\n{"b": 2}\n{"c": "cut \xc3')
    assert read_json_lines(path) == [{"a": "x\u2028y"}, {"b": 2}]
    write_text(path, "name \udcff\n")
    assert path.read_bytes() == b"name \\udcff\n"


def test_a_folder_is_held_by_one_process_until_it_ends_in_whatever_way(tmp_path):
    program = (
        "import sys, time\nfrom attention_branch.files import held_alone\n"
        "with held_alone(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    folder = tmp_path / "runs"
    other = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"Another command works in '.*runs'; .* another folder with --out"):
            held_alone(folder).__enter__()
        (folder / "read.json").write_text("{}")  # nobody is kept from reading and writing
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with held_alone(folder):
        assert (folder / "read.json").exists()
    with held_alone(folder):  # and it is given back at the end of the block
        pass
