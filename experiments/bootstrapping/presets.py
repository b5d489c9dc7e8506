"""Named sets of options: ``--preset smoke`` stands for what is listed here; options that are typed count more."""

from __future__ import annotations

from collections.abc import Sequence

from envs.errors import UserError, unknown

PRESETS = {
    "full": {},
    "smoke": {
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
    },
}


def expanded(argv: Sequence[str]) -> list[str]:
    """The arguments with a preset in place of its name.

    :param argv: as they were typed.
    :raises UserError: for an unknown preset.
    """
    rest = list(argv)
    for at, token in enumerate(rest):
        name, equals, value = token.partition("=")
        if name == "--preset":
            if not equals and at + 1 >= len(rest):
                raise UserError(f"--preset needs a value ({' or '.join(PRESETS)})")
            value = value if equals else rest[at + 1]
            if value not in PRESETS:
                raise unknown("preset", value, PRESETS)
            rest[at : at + (1 if equals else 2)] = []
            typed = {other.partition("=")[0].replace("_", "-") for other in rest}
            found = {option: given for option, given in PRESETS[value].items() if option not in typed}
            return [*(part for option in found.items() for part in option), *rest]
    return rest
