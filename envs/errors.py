"""The one error that users see as a single line: what was wrong, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad user input. Entry points print its one line and exit with code 2; other exceptions keep their traceback."""


def unknown(kind: str, name: str, valid: Iterable[str], listed: Iterable[str] | None = None) -> UserError:
    """Build the error for a name that nothing answers to.

    :param kind: what was looked for, such as ``"environment"``.
    :param name: what the user typed.
    :param valid: the names that exist, in the order in which they are to be listed.
    :param listed: what is listed in their place, where they are many.
    :return: "unknown <kind> 'x': did you mean 'y'? valid: a, b, c" (without the question where nothing is close).
    """
    names = list(valid)
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.4)
    question = f" did you mean '{by_lower_case[close[0]]}'?" if close else ""
    shown = names if listed is None else list(listed)
    return UserError(f"unknown {kind} '{name}':{question} valid: {', '.join(shown) or '(none)'}")
