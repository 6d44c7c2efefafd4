"""Writing files so that a reader never sees half of one: write beside the target, flush, rename."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attention_branch.errors import UserError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder that takes the target's place when the block ends well.

    If the block raises, the temporary file is removed and the target is left as it was. A full or read-only disk
    becomes a `UserError`.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(target), suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as problem:
        raise disk_error(problem, target) from problem
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target that takes the target's place when the block ends well.

    An existing target folder is replaced whole. If the block raises, it is left as it was.
    """
    target = Path(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)
        yield temporary
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.replace(old / target.name)
            temporary.replace(target)
            shutil.rmtree(old)
        else:
            temporary.replace(target)
    except OSError as problem:
        raise disk_error(problem, target) from problem
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)


def disk_error(problem: OSError, target: str | Path) -> Exception:
    """Return a `UserError` for what keeps `target` from being written; what is wrong elsewhere comes back as it is."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: '{target}' was not written; free some space and run the command again.")
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"No permission to write '{target}'; choose another output folder.")
    if problem.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"'{target}' cannot be written, a file stands where a folder is needed; choose another one.")
    target = Path(target)
    place = target.absolute()
    named = [Path(os.fsdecode(name)).absolute() for name in (problem.filename, problem.filename2) if name is not None]
    own = [place.is_relative_to(path) or _is_temporary(path, place) for path in named]
    if problem.errno is not None and (any(own) or not named):
        return UserError(f"'{target}' cannot be written ({problem.strerror or problem}); choose another output folder.")
    return problem


def _is_temporary(path: Path, target: Path) -> bool:
    """Tell whether a file is one that `atomic_path` writes in the place of its target."""
    return path.parent == target.parent and path.name.startswith(_prefix(target))


def _prefix(target: Path) -> str:
    # Not the whole name: one that is as long as a file system allows leaves no room for more.
    return f".{target.stem[:20]}."


def require_folder(path: str | Path) -> Path:
    """Return a folder to write into, before long work; `UserError` where none can stand. It is not made yet."""
    path = Path(path)
    above = path
    try:
        while not above.exists() and above != above.parent:
            above = above.parent
    except OSError as problem:
        raise disk_error(problem, path) from problem
    if not above.is_dir():
        raise disk_error(NotADirectoryError(errno.ENOTDIR, "not a folder"), path)
    if not os.access(above, os.W_OK | os.X_OK):
        raise disk_error(PermissionError(errno.EACCES, "no permission"), path)
    return path


@contextmanager
def held_alone(folder: str | Path) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder while the block runs; it is made if need be.

    A `UserError` while another one has it. The system gives it back when the process ends, however it ends (`flock`
    on `.lock` in the folder). Where the file system has no locks nobody is kept out.
    """
    import fcntl  # not on every system, and nothing else here needs it

    place = Path(folder) / ".lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file = place.open("a")
    except OSError as problem:
        raise disk_error(problem, folder) from problem
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise UserError(
                f"Another command works in '{folder}'; wait until it has ended, or name another folder with --out."
            ) from problem
        except OSError as problem:
            if problem.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise disk_error(problem, folder) from problem
        yield


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8; bytes of a file's name that are not become escapes, as in JSON)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def append_text(path: str | Path, text: str) -> None:
    """Write at the end of a text file, as `write_text` does, and wait until it is on the disk."""
    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise disk_error(problem, path) from problem


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all (UTF-8, indented, NaN refused)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """Return a value as a line of a JSON-lines file (NaN refused)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; lines that a kill cut off or a disk damaged are left out."""
    found = []
    # Of bytes, and at line feeds alone: half a character must not hide the lines before it, and text may hold U+2028.
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of bytes as hexadecimal."""
    return hashlib.sha256(content).hexdigest()
