"""Named sets of options: ``--preset smoke`` stands for what is listed here; options that are typed count more."""

from __future__ import annotations

from collections.abc import Sequence

from envs.errors import unknown
from experiments.bootstrapping.config import HAND
from experiments.options.presets import before_typed, taken

_TASK = {
    "--cameras": "12",
    "--image-size": "64",
    "--sequences": "8",
    "--frames": "50",
    "--labelled": "40",
    "--test-sequences": "4",
    "--rounds": "2",
    "--first-steps": "800",
    "--detector.width": "16",
    "--training.steps": "800",
    "--selection.window": "4",
    "--ransac.threshold": "2.0",
    "--plausibility.velocity": "1000",
}
"""An environment is simpler than a hand: it always looks the same."""
_SMOKE = {
    "--sequences": "2",
    "--frames": "16",
    "--cameras": "12",
    "--held-out": "2",
    "--image-size": "64",
    "--labelled": "60",
    "--test-sequences": "1",
    "--test-frames": "8",
    "--rounds": "2",
    "--first-steps": "150",
    "--detector.width": "16",
    "--training.steps": "100",
    "--training.batch-size": "16",
    "--selection.window": "4",
    "--selection.frames": "8",
    "--ransac.threshold": "6",
    "--plausibility.least-confidence": "0",
    "--plausibility.bone-tolerance": "100",
    "--plausibility.least-points": "0.1",
    "--plausibility.velocity": "1000",
}
"""So short a training would have no frame accepted: the checks let nearly all through, and the numbers say nothing."""
PRESETS = ("full", "smoke")


def preset_options(name: str, env: str) -> dict[str, str]:
    """What a preset stands for.

    :param name: one of :data:`PRESETS`; "full" is what is taken where none is named.
    :param env: "hand" or an environment.
    :raises UserError: for an unknown preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return ({} if env == HAND else _TASK) | (_SMOKE if name == "smoke" else {})


def expanded(argv: Sequence[str]) -> list[str]:
    """The arguments with a preset's options before them, except for those that are typed.

    :param argv: as they were typed.
    :raises UserError: for an unknown preset.
    """
    rest, name = taken(argv, "--preset")
    found = preset_options("full" if name is None else name, taken(argv, "--env")[1] or HAND)
    return before_typed(found, rest)
