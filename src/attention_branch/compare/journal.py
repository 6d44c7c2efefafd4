"""The journal of a long command: finished pieces, a line each, so that a broken call is continued by the same one."""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_branch.files import append_text, json_line, read_json_lines, write_text

_ARRAY = "__array__"
_NUMBER = "__number__"


class Journal:
    """Values by name in a JSON-lines file; those that a broken call with equal settings left are there again.

    Values are plain ones and tensors, nested as they like; numbers and tensors come back bit by bit. `note` says that
    the file was of other settings, and which, so that everything begins anew; `reused` counts the pieces taken from the
    file, `outdated` those that were there but made of other material. A line that was damaged counts as missing.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.note = ""
        self.reused = self.outdated = 0
        header = {"settings": json.loads(json.dumps(settings))}
        lines = read_json_lines(self.path) if self.path.is_file() else []
        if lines and lines[0] != header:
            earlier = lines[0].get("settings")
            changed = _changed(earlier, header["settings"]) if isinstance(earlier, dict) else []
            named = f" ({', '.join(changed)})" if changed else ""
            self.note = f"A broken comparison with other settings{named} lay in the folder; this one begins anew."
            lines = []
        self._found = {line["piece"]: line for line in lines[1:] if line.get("sha256") == _digest(line)}
        # What is kept is written anew, so that a line that was cut off does not stand before the next one; with the
        # first piece and not before, so that a call that fails at once leaves nothing behind.
        self._pending = [header, *self._found.values()]

    def once(self, piece: str, compute: Callable[[], Any], material: str = "") -> Any:
        """Return a piece as it stands in the file; where it does not, compute it and write it to the disk first.

        `material` is a digest of what it is made of; a piece made of anything else is computed anew. Either way the
        value has gone through the file's form, so that a continued call works with equal ones.
        """
        known = self._found.get(piece)
        if known is not None and known["material"] == material:
            self.reused += 1
            return decoded(known["value"])
        self.outdated += known is not None
        line = {"piece": piece, "material": material, "value": encoded(compute())}
        line["sha256"] = _digest(line)
        if self._pending:
            write_text(self.path, "".join(json_line(pending) for pending in self._pending))
            self._pending = []
        append_text(self.path, json_line(line))
        return decoded(line["value"])

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
    if isinstance(value, np.generic):
        value = value.item()
    # JSON has no NaN and no infinity.
    return {_NUMBER: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def decoded(value: Any) -> Any:
    """Return what `encoded` was given, arrays as tensors on the CPU."""
    if isinstance(value, dict):
        if _ARRAY in value:
            kind, shape, content = value[_ARRAY]
            array = np.frombuffer(base64.b64decode(content), dtype=np.dtype(kind)).reshape(shape)
            return torch.from_numpy(array.copy())
        if _NUMBER in value:
            return float(value[_NUMBER])
        return {key: decoded(item) for key, item in value.items()}
    return [decoded(item) for item in value] if isinstance(value, list) else value


def _digest(line: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a line's content, which tells a damaged one."""
    content = [line.get(key) for key in ("piece", "material", "value")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _changed(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name.replace("_", " ") for name in sorted({*earlier, *now}) if earlier.get(name) != now.get(name)]
