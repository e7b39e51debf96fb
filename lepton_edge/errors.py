"""Every error a user can meet, and the exit code it carries.

Standard library only: this file is also imported inside workers, whatever environment they run in.
"""

from __future__ import annotations

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_BUG, EXIT_LIMIT, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


class LeptonError(Exception):
    """Something the user can act on: one line that names the culprit, and a hint with the fix."""

    exit_code = EXIT_ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LeptonError):
    """The call itself is off: an unknown name, a bad option, a recipe key that does not exist."""

    exit_code = EXIT_USAGE


class LimitError(LeptonError):
    """Everything ran, and a limit the user set (accuracy, latency, size) is not met."""

    exit_code = EXIT_LIMIT


class MissingExtra(LeptonError):
    """A step or runtime needs a package that is not installed."""


class NoWay(LeptonError):
    """This way cannot do it, through no fault of the input: another way may."""


class WorkerError(LeptonError):
    """A worker process crashed, hung, or reported a failure that is not the user's own input."""


class PlaceLost(WorkerError):
    """The place that a worker ran in cannot be reached any more: a board that was unplugged, say."""


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint for a mistyped name: the closest known one, or the list of all."""
    import difflib

    same = [k for k in known if k.lower() == word.lower()]
    close = same or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def first_line(error: BaseException, limit: int = 240) -> str:
    """The first line of an exception's text that says something, shortened to `limit` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def root_cause(error: BaseException) -> str:
    """The text of the innermost cause of an exception, on one line, cut at 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
