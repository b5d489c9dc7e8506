"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import pytest

from experiments.training.progress import Progress


def test_plain_lines_come_now_and_then(capsys: pytest.CaptureFixture) -> None:
    show = Progress("learning", "steps", seconds=0.0)
    show(3, 10, "all is well")
    assert capsys.readouterr().out == "learning: 3 / 10 steps  all is well\n"
    seldom = Progress("learning", "steps", seconds=100.0)
    seldom(3, 10)
    assert capsys.readouterr().out == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    show = Progress("learning", "steps")
    for done in (1, 9, 10):
        show(done, 10, "all is well")
        time.sleep(0.12)  # a bar is drawn ten times a second
    shown = capsys.readouterr()
    assert "learning" in shown.err and "9/10" in shown.err and "all is well" in shown.err and shown.out == ""
