"""The user's cache folder, and what is remembered there: which pictures were decoded before, and how that went."""

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import PIL

Stamp = tuple[str, int, int]

# Raised when the decoder's rules change, so that older verdicts are not believed.
_RULES = 1
_TABLE = (
    "CREATE TABLE IF NOT EXISTS verified "
    "(name TEXT PRIMARY KEY, size INTEGER, modified INTEGER, decoder TEXT, problem TEXT) WITHOUT ROWID"
)


def cache_folder() -> Path:
    """Return the folder for downloaded and derived data: `$ABN_DATA`, else `~/.cache/attention-branch`."""
    chosen = os.environ.get("ABN_DATA")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attention-branch"


_SELECT = "SELECT name, size, modified, problem FROM verified WHERE"


class Verdicts:
    """Remembers for each picture whether it could be decoded, as long as its size and time of change stay.

    Without a cache folder that can be written it remembers nothing, and every picture is decoded anew.
    """

    def __init__(self) -> None:
        self.path = cache_folder() / "verified.sqlite"
        self.decoder = f"Pillow {PIL.__version__}, rules {_RULES}"

    def look_up(self, stamps: Sequence[Stamp]) -> dict[str, str | None]:
        """Return the problem (None: it is good) of each picture that is known and unchanged, by name."""
        known: dict[str, str | None] = {}
        if not self.path.exists():
            return known
        expected = {name: (size, modified) for name, size, modified in stamps}
        names = list(expected)
        try:
            with closing(self._connect()) as database:
                for begin in range(0, len(names), 500):
                    some = names[begin : begin + 500]
                    places = ",".join("?" * len(some))
                    query = (
                        f"SELECT name, size, modified, problem FROM verified WHERE decoder = ? AND name IN ({places})"
                    )
                    for name, size, modified, problem in database.execute(query, [self.decoder, *some]):
                        if expected[name] == (size, modified):
                            known[name] = problem
        except (sqlite3.Error, UnicodeError):
            return {}
        return known

    def remember(self, verdicts: Iterable[tuple[Stamp, str | None]]) -> None:
        """Keep new verdicts."""
        entries = [(*stamp, self.decoder, problem) for stamp, problem in verdicts]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                database.execute(_TABLE)
                database.executemany("INSERT OR REPLACE INTO verified VALUES (?, ?, ?, ?, ?)", entries)
        except (sqlite3.Error, OSError, UnicodeError):
            return

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=10)
