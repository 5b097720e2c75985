"""The one exception for mistakes that a user can mend, and the hint that names the nearest spelling."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in a configuration, a file or an argument.

    The message says what was found, what was expected and what to do. `sample_condition.py` prints it
    without a traceback and ends with exit status 2.
    """


class StorageError(UserError):
    """A file of a run cannot be written: the disk is full, or the folder is gone or read-only.

    What was written before is whole. `sample_condition.py` ends with exit status 1.
    """


def printable(text: object) -> str:
    """Text fit for one line of a terminal: line breaks and control characters as \\n, \\x1b, ..."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def first(items: Sequence[object], most: int) -> str:
    """"a, b, c and 4 more"."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(printable(item) for item in items[:most]) + more


def did_you_mean(word: object, choices: Iterable[str], likeness: float = 0.6) -> str:
    """Return "did you mean 'x'? choose from a, b, c" for a word that is none of `choices`.

    Args:
        likeness: the least that a suggestion has, 0 to 1.
    """
    choices = sorted(choices)
    key, colon, value = str(word).partition(":")
    if colon and key in choices:
        return f"did you mean '{key}: {value}', with a space?"          # YAML reads {a:1} as a key without a value
    nearest = get_close_matches(str(word), choices, n=1, cutoff=likeness)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{hint}choose from {', '.join(choices)}"
