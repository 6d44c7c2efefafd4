"""The documentation does what it says: its Python runs, its commands and links are right, its options exist."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import tyro
from PIL import Image

import attention_branch
from attention_branch import cli
from attention_branch.training import parse_train_arguments

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Words that begin somebody else's command line.
OTHERS = ("torchrun", "srun", "pip", "make", "python", "git")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Return the words behind `abn` of every command line in the page's bash blocks."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|\s)(?:abn|\$\(which abn\))\s+(.*)", line)
            if called:
                found.append(shlex.split(called.group(1), comments=True))
    return found


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """Return the options in a command's help."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    return frozenset(OPTION.findall(printed.getvalue()))


def test_the_pages_hold_what_the_tests_look_for():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert len(blocks(readme, "python")) >= 4
    assert len(commands(readme)) >= 4
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES) >= 20


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_runs(page, tmp_path, monkeypatch):
    found = blocks(page.read_text(encoding="utf-8"), "python")
    if not found:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABN_DATA", str(tmp_path / "cache"))
    Image.linear_gradient("L").convert("RGB").resize((320, 240)).save("photo.jpg")
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(found, 1):
        offline = block.replace("pretrained=True", "pretrained=False")
        exec(compile(offline, f"{page.name}, Python block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_parse(page, monkeypatch):
    for words in commands(page.read_text(encoding="utf-8")):
        command, rest = words[0], words[1:]
        assert command in cli.COMMANDS, words
        if command == "train":
            # A run to resume or to start from does not exist here; the rest of the line is read all the same.
            rest = [word for word in rest if word != "--resume"]
            if "--from" in rest:
                place, data_named = rest.index("--from"), not rest[0].startswith("-")
                rest = rest[:place] + rest[place + 1 + data_named :]  # else the run's name stands for its data
            config = parse_train_arguments(rest)
            assert config.data
            continue
        calls = []
        wanted = cli.COMMANDS[command]

        def record(*given, _calls=calls, **named):
            _calls.append((given, named))
            return 0

        # tyro reads the signature of what is wrapped, so the line is parsed and nothing is run.
        tyro.cli(functools.wraps(wanted)(record), args=rest)
        assert len(calls) == 1


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    known = frozenset().union(*(options_of(command) for command in cli.COMMANDS)) | {"--help", "--version"}
    for span in re.findall(r"`([^`\n]+)`", text):
        if not span.startswith(OTHERS):
            assert set(OPTION.findall(span)) <= known, span


def test_the_reference_has_every_command_and_option():
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## abn (\w+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert set(sections) == set(cli.COMMANDS)
    for command, section in sections.items():
        assert set(OPTION.findall(section)) == options_of(command) - {"--help"}, command


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in attention_branch.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, target
