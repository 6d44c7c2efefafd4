"""The images that are open: kept with their features for a while, the longest unused are dropped first."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from attention_branch.serve.predictor import ClassMap, Opened
from attention_branch.serve.uploads import Upload


@dataclass
class Case:
    """One open image: the upload, its answer with features, what was asked of it since, and its label where known."""

    id: str
    upload: Upload
    opened: Opened
    label: dict[str, str] | None = None
    source: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    maps: dict[tuple[str, str, int | None], ClassMap] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        upload = self.upload
        kept = sum(found.values.nbytes for found in self.maps.values())
        # A noted question has a few hundred bytes a head.
        noted = 500 * len(self.asked) * len(self.opened.answer.logits)
        return len(upload.content) + 2 * upload.array.nbytes + self.opened.nbytes + kept + noted


class Cases:
    """Open images by their id, at most `most` of them and `memory` bytes. Safe to use from several threads."""

    def __init__(self, *, most: int = 200, memory: int = 512 * 2**20) -> None:
        self.most, self.memory = most, memory
        self._cases: OrderedDict[str, Case] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._cases)

    def add(self, upload: Upload, opened: Opened, label: dict[str, str] | None, source: str | None) -> Case:
        """Keep an image and return it; its id cannot be guessed."""
        case = Case(secrets.token_urlsafe(12), upload, opened, label, source)
        with self._lock:
            self._cases[case.id] = case
            total = sum(kept.nbytes for kept in self._cases.values())
            while len(self._cases) > 1 and (len(self._cases) > self.most or total > self.memory):
                _, dropped = self._cases.popitem(last=False)
                total -= dropped.nbytes
        return case

    def get(self, key: str) -> Case | None:
        """Return an open image, now the most recently used; None when it was dropped or never there."""
        with self._lock:
            case = self._cases.get(key)
            if case is not None:
                self._cases.move_to_end(key)
            return case
