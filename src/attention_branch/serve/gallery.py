"""The pictures to go through: a folder's or a data set's, the worst and the most uncertain first.

What the network says of each is computed in the background and kept beside the annotations, with the state of the
queue, so that a person goes on tomorrow where they stopped today.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from attention_branch.data.images import find_images
from attention_branch.errors import UserError
from attention_branch.files import write_json
from attention_branch.serve.compute import BACKGROUND, Compute
from attention_branch.serve.predictor import SINGLE, Answer, Facts, probabilities
from attention_branch.serve.uploads import Limits, read_upload

ORDERS = ("worst", "uncertain", "name")
STATES = ("todo", "wrong", "annotated", "skipped", "all")
FILE = "queue.json"
_BATCHES_KEPT = 20
"""Batches after which what the network said is written down."""


class Pictures(Protocol):
    """Pictures by number: names, labels by head where they are known, and bytes."""

    title: str
    names: list[str]

    def labels(self, index: int) -> dict[str, str] | None:
        """Return the true class by head, None where it is not known."""
        ...

    def content(self, index: int) -> bytes:
        """Return the picture's bytes; `UserError` when it cannot be read."""
        ...


class FolderPictures:
    """Picture files; where a file's folder has the name of a class, that is its label."""

    def __init__(self, arguments: Iterable[str], facts: Facts) -> None:
        arguments = list(arguments)
        self.title = ", ".join(arguments)
        self.paths = find_images(arguments)
        # A file's name may hold bytes that are no text.
        self.names = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in self.paths]
        self._classes = set() if facts.multitask else set(facts.classes[SINGLE])

    def labels(self, index: int) -> dict[str, str] | None:
        """Return the name of the file's folder where it is a class's."""
        name = self.paths[index].parent.name
        return {SINGLE: name} if name in self._classes else None

    def content(self, index: int) -> bytes:
        """Return the file's bytes."""
        try:
            return self.paths[index].read_bytes()
        except OSError as problem:
            raise UserError(f"'{self.paths[index]}' cannot be read ({problem.strerror}).") from problem


@dataclass
class Entry:
    """What is known of one picture after the network saw it; `loss` is None without a label."""

    digest: str
    prediction: str
    probability: float
    correct: bool | None
    loss: float | None
    uncertainty: float

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Entry":
        """Return what `queue.json` holds of a picture; `TypeError` or `ValueError` where it was damaged."""
        entry = cls(**values)
        for number in (entry.probability, entry.uncertainty, *(() if entry.loss is None else (entry.loss,))):
            if not isinstance(number, int | float):
                raise TypeError(f"{number!r} is no number.")
        return entry

    @classmethod
    def of(cls, digest: str, facts: Facts, answer: Answer, labels: dict[str, str] | None) -> "Entry":
        """Judge an answer: cross-entropy and entropy, of several heads their mean; the prediction is the first's."""
        losses, entropies, right = [], [], []
        for head, logits in answer.logits.items():
            shares = probabilities(logits)
            entropies.append(float(-(shares * np.log(np.maximum(shares, 1e-12))).sum() / np.log(len(shares))))
            if labels and labels.get(head) in facts.classes[head]:
                index = list(facts.classes[head]).index(labels[head])
                losses.append(float(-np.log(max(shares[index], 1e-12))))
                right.append(int(shares.argmax()) == index)
        head = next(iter(answer.logits))
        shares = probabilities(answer.logits[head])
        best = int(shares.argmax())
        return cls(
            digest=digest,
            prediction=facts.classes[head][best],
            probability=round(float(shares[best]), 6),
            correct=all(right) if right else None,
            loss=round(float(np.mean(losses)), 6) if losses else None,
            uncertainty=round(float(np.mean(entropies)), 6),
        )


class Gallery:
    """Pictures with what the network says of them and what a person has done; `queue.json` in `folder` keeps both."""

    def __init__(
        self,
        pictures: Pictures,
        facts: Facts,
        compute: Compute,
        predict: Callable[[np.ndarray], list[Answer]],
        folder: Path,
        limits: Limits,
    ) -> None:
        self.pictures, self.facts, self.compute, self.predict = pictures, facts, compute, predict
        self.folder, self.limits = folder, limits
        self.entries: dict[int, Entry] = {}
        self.broken: dict[int, str] = {}
        self.skipped: set[str] = set()
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        names = "\n".join(pictures.names).encode("utf-8", "backslashreplace")
        self._key = {"weights_sha256": facts.weights_sha256, "pictures_sha256": hashlib.sha256(names).hexdigest()}
        self._resume()
        self._thread = threading.Thread(target=self._rank, name="abn-gallery", daemon=True)

    def start(self) -> None:
        """Begin to look at the pictures that were not seen yet."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further batch."""
        self._stop.set()

    def close(self) -> None:
        """Stop looking, and write down what was found."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._save()

    @property
    def seen(self) -> int:
        """Pictures that the network has looked at or that cannot be read."""
        return len(self.entries) + len(self.broken)

    def content(self, index: int) -> tuple[bytes, str]:
        """Return a picture's bytes and its name; `UserError` for a number that there is none of."""
        self.check(index)
        return self.pictures.content(index), self.pictures.names[index]

    def check(self, index: int) -> None:
        """Raise `UserError` for a number that no picture has."""
        if not 0 <= index < len(self.pictures.names):
            raise UserError(f"There is no picture {index}; there are {len(self.pictures.names)}, from 0.")

    def set_skipped(self, index: int, skipped: bool) -> None:
        """Mark a picture as passed over, or take the mark back."""
        self.check(index)
        name = self.pictures.names[index]
        with self._lock:
            (self.skipped.add if skipped else self.skipped.discard)(name)
        self._save()

    def listed(
        self, annotated: set[str], *, order: str, state: str, wanted: str | None, offset: int, limit: int
    ) -> dict[str, Any]:
        """Return a page of the pictures in an order, of a state, of one class; `annotated` are
        the first 16 digits of images' SHA-256."""
        for value, known, what in ((order, ORDERS, "order"), (state, STATES, "state")):
            if value not in known:
                raise UserError(f"There is no {what} '{value}'; choose one of {', '.join(known)}.")
        with self._lock:
            entries, skipped, broken = dict(self.entries), set(self.skipped), dict(self.broken)
        rows = []
        for index, name in enumerate(self.pictures.names):
            if index in broken:
                continue
            entry, labels = entries.get(index), self.pictures.labels(index)
            done = entry is not None and entry.digest[:16] in annotated
            its_state = "annotated" if done else "skipped" if name in skipped else "todo"
            if state == "wrong" and (entry is None or entry.correct is not False):
                continue
            if state in ("todo", "annotated", "skipped") and its_state != state:
                continue
            classes = set((labels or {}).values()) | ({entry.prediction} if entry else set())
            if wanted and wanted not in classes:
                continue
            rows.append((index, name, labels, entry, its_state))
        if order != "name":
            rows.sort(key=lambda row: _rank_key(row[3], order))
        return {
            "total": len(rows),
            "pictures": len(self.pictures.names),
            "seen": self.seen,
            "broken": len(broken),
            "title": self.pictures.title,
            "items": [
                {
                    "index": index,
                    "name": name,
                    "label": labels,
                    "state": its_state,
                    **(
                        {
                            "prediction": entry.prediction,
                            "probability": entry.probability,
                            "correct": entry.correct,
                            "loss": entry.loss,
                            "uncertainty": entry.uncertainty,
                        }
                        if entry
                        else {}
                    ),
                }
                for index, name, labels, entry, its_state in rows[offset : offset + limit]
            ],
        }

    def _rank(self) -> None:
        """Look at all pictures, a batch at a time, behind everything that somebody waits for."""
        size = self.compute.largest
        left = [index for index in range(len(self.pictures.names)) if index not in self.entries]
        for start in range(0, len(left), size):
            batch = []
            for index in left[start : start + size]:
                if self._stop.is_set():
                    return
                try:
                    content, name = self.content(index)
                    upload = read_upload(content, name, self.facts.preprocessing, self.limits)
                except Exception as problem:  # One odd picture must not end the list.
                    self.broken[index] = str(problem) or type(problem).__name__
                    continue
                batch.append((index, upload.digest, upload.array))
            if not batch:
                continue
            arrays = np.stack([array for _, _, array in batch])
            try:
                answers = self.compute.run(partial(self.predict, arrays), priority=BACKGROUND).result()
            except Exception as problem:
                if self._stop.is_set():
                    return
                self.broken.update({index: f"It cannot be answered ({problem})." for index, _, _ in batch})
                continue
            with self._lock:
                for (index, digest, _), answer in zip(batch, answers, strict=True):
                    self.entries[index] = Entry.of(digest, self.facts, answer, self.pictures.labels(index))
            if start // size % _BATCHES_KEPT == _BATCHES_KEPT - 1:
                self._save()
        self._save()

    def _resume(self) -> None:
        try:
            kept = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
            self.skipped = {str(name) for name in kept["skipped"]}
            if kept["key"] == self._key:
                self.entries = {int(index): Entry.read(values) for index, values in kept["entries"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # None yet, or a damaged one: the network looks again.

    def _save(self) -> None:
        with self._saving:
            with self._lock:
                entries = {str(index): vars(entry) for index, entry in sorted(self.entries.items())}
                kept = {"format": 1, "key": self._key, "skipped": sorted(self.skipped), "entries": entries}
            if self.skipped or self.folder.is_dir():
                write_json(self.folder / FILE, kept)


def _rank_key(entry: Entry | None, order: str) -> tuple[int, float]:
    """Return what sorts a picture: those not seen yet last, those without a label by how unsure the network is."""
    if entry is None:
        return (2, 0.0)
    if order == "worst" and entry.loss is not None:
        return (0, -entry.loss)
    return (1 if order == "worst" else 0, -entry.uncertainty)
