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
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
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
    """Return a `UserError` for the disk's own troubles (full, read-only, no permission), else the problem itself."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: '{target}' was not written; free some space and run the command again.")
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"No permission to write '{target}'; choose another output folder.")
    if problem.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"'{target}' cannot be written, a file stands where a folder is needed; choose another one.")
    return problem


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all (UTF-8, indented, NaN refused)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
