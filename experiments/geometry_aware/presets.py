"""Named sets of options: ``--preset paper`` stands for what is listed here; options that are typed count more."""

from __future__ import annotations

PRESETS: dict[str, dict[str, str | None]] = {
    "full": {},
    "detected": {"--source": "detector", "--poses": "2500"},
    "paper": {
        "--poses": "100000",
        "--bodies": "200",
        "--network.width": "64",
        "--network.points": "128",
        "--network.size": "64",
        "--network.thickness": "8",
        "--network.no-soft": None,
        "--network.no-shared": None,
        "--training.steps": "50000",
        "--training.batch-size": "128",
        "--evaluate-every": "5000",
    },
    "smoke": {
        "--poses": "60",
        "--bodies": "3",
        "--test-bodies": "2",
        "--network.width": "8",
        "--network.points": "16",
        "--training.steps": "40",
        "--training.batch-size": "8",
        "--evaluate-every": "20",
    },
}
"""What each preset stands for; "full", two cores, is what is taken where none is named."""
