"""How far something is that takes minutes."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere; nothing at all of what takes seconds.

    :param what: what is going on.
    :param unit: what is counted, in the plural.
    :param seconds: between plain lines.
    """

    def __init__(self, what: str, unit: str, seconds: float = 15.0) -> None:
        self.what, self.unit, self.seconds = what, unit, seconds
        self.printed = time.monotonic()
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show how many of how many are done.

        :param note: shown behind.
        """
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(total=total, unit=self.unit, desc=self.what, dynamic_ncols=True, leave=False)
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
            if done >= total:
                self.bar.close()
        elif time.monotonic() - self.printed > self.seconds:
            self.printed = time.monotonic()
            print(f"{self.what}: {done} / {total} {self.unit}{'  ' + note if note else ''}", flush=True)
