"""Where a number comes from: the commit and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def origin() -> dict[str, str]:
    """The commit and the machine that the numbers come from."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    model = "unknown processor"
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    machine = f"{os.cpu_count()} cores, {model}, {platform.system()}"
    return {"commit": done.stdout.strip() or "unknown", "machine": machine}
