"""The journal of a long command: finished pieces, a line each, so that a broken call is continued by the same one."""

import base64
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.files import disk_error, write_text

_ARRAY = "__array__"


class Journal:
    """Values by name in a JSON-lines file; those that a broken call with equal settings left are there again.

    Values are plain ones and tensors, nested as they like; numbers and tensors come back bit by bit. `note` says that
    the file was of other settings, and which, so that everything begins anew; `reused` counts the pieces found.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.note = ""
        header = {"settings": json.loads(json.dumps(settings))}
        lines = _whole_lines(self.path) if self.path.is_file() else []
        if lines and lines[0] != header:
            earlier = lines[0].get("settings")
            changed = _changed(earlier, header["settings"]) if isinstance(earlier, dict) else []
            named = f" ({', '.join(changed)})" if changed else ""
            self.note = f"A broken comparison with other settings{named} lay in the folder; this one begins anew."
            lines = []
        self._found = {line["piece"]: line["value"] for line in lines[1:] if "piece" in line}
        self.reused = len(self._found)
        # What is kept is written anew, so that a line that was cut off does not stand before the next one; with the
        # first piece and not before, so that a call that fails at once leaves nothing behind.
        self._pending = [header, *({"piece": piece, "value": value} for piece, value in self._found.items())]

    def once(self, piece: str, compute: Callable[[], Any]) -> Any:
        """Return a piece as it stands in the file; where it does not, compute it and write it to the disk first.

        Both ways the value has gone through the file's form, so that a continued call works with equal ones.
        """
        if piece not in self._found:
            entry = encoded(compute())
            if self._pending:
                write_text(self.path, "".join(_line(line) for line in self._pending))
                self._pending = []
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line({"piece": piece, "value": entry}))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as problem:
                raise disk_error(problem, self.path) from problem
            return decoded(entry)
        return decoded(self._found[piece])

    def remove(self) -> None:
        """Remove the file: all is done."""
        self.path.unlink(missing_ok=True)


def encoded(value: Any) -> Any:
    """Return a value as JSON takes it: tensors and arrays as type, shape and base64 of their bytes, sets as lists."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {_ARRAY: [value.dtype.str, list(value.shape), content]}
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [encoded(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def decoded(value: Any) -> Any:
    """Return what `encoded` was given, arrays as tensors on the CPU."""
    if isinstance(value, dict):
        if _ARRAY in value:
            kind, shape, content = value[_ARRAY]
            array = np.frombuffer(base64.b64decode(content), dtype=np.dtype(kind)).reshape(shape)
            return torch.from_numpy(array.copy())
        return {key: decoded(item) for key, item in value.items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines


def _changed(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name.replace("_", " ") for name in sorted({*earlier, *now}) if earlier.get(name) != now.get(name)]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
