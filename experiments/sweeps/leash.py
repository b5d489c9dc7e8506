"""Runs a program that ends with the process which started it: ``python -m experiments.sweeps.leash PID PROGRAM …``.

A training whose node's worker was killed must not go on unseen: another node takes its run folder up.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

EVERY = 0.2
"""Seconds between two looks."""


def main(argv: list[str]) -> None:
    """Watch, then become the program.

    :param argv: process number of the parent, module, its arguments.
    """
    parent, program, *arguments = argv
    threading.Thread(target=end_with, args=(int(parent),), daemon=True).start()
    sys.argv = [program, *arguments]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


def end_with(parent: int) -> None:
    """Kill this process as soon as its parent is another one.

    :param parent: process number.
    """
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
