"""Named sets of options: ``--preset paper`` stands for what is listed here; options that are typed count more."""

from __future__ import annotations

PRESETS: dict[str, dict[str, str]] = {
    "full": {},
    "paper": {
        "--image-size": "128",
        "--shapes": "4000",
        "--views": "50",
        "--network.width": "64",
        "--network.stride": "1",
        "--training.steps": "200000",
        "--training.batch-size": "256",
        "--training.accumulate": "32",
        "--training.loss.consistency": "1",
        "--training.loss.pose": "0.2",
        "--training.loss.silhouette": "1",
        "--training.loss.variance": "0.5",
        "--evaluate-every": "5000",
    },
    "smoke": {
        "--image-size": "32",
        "--shapes": "40",
        "--test-shapes": "8",
        "--views": "6",
        "--network.width": "16",
        "--training.steps": "60",
        "--training.batch-size": "16",
        "--evaluate-every": "30",
    },
}
"""What each preset stands for; "full", two cores, is what is taken where none is named."""
