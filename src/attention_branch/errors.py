"""What a user can mend, said in one sentence: every message names the value at fault and the way out."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints the message without a traceback and exits with status 2."""


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ` Did you mean 'a', 'b' or 'c'?` for the nearest known names, or an empty string when none is near."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    if not near:
        return ""
    quoted = [f"'{item}'" for item in near]
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
    return f" Did you mean {listed}?"
