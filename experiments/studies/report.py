"""What a study found, as one JSON file, pictures, and tables for the documentation."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.options.config import RunConfig
from experiments.runs import ORIGIN, Run
from kp3d_rl.statistics import interquartile_mean, ratio_interval, welch_interval, wilson_interval

SERIES = {
    "evaluated_success_at_end": "evaluation/success_at_end",
    "reconstruction_ratio": "keypoints/reconstruction_ratio",
    "view_disagreement_cm": "keypoints/view_disagreement_cm",
    "encoder_gradient_from_auxiliary": "gradients/encoder_from_auxiliary",
    "encoder_gradient_from_policy": "gradients/encoder_from_policy",
}
"""Curves that are kept, by the column of metrics.csv that they come from."""

COMPARED = ("constant", "random encoder", "autoencoder")
"""What the probe of the keypoints is compared with, in this order."""
BARS = {"constant": 2.0, "first body": 2.0, "random encoder": 3.0, "autoencoder": 1.0}
"""The same for objects of several tasks, and how many times as large their errors have to be."""

PROBED = (
    "probe_error_cm", "times_better_than", "view_disagreement_cm", "view_disagreement_unweighted_cm",
    "same_body_share", "counted", "on_body",
)  # fmt: skip
"""What is kept of a probe."""

STANDING = 0.1
"""Centimetres: a body that a constant predicts better than this does not move."""
POINTS = 50
"""Points that a kept curve has at most."""


def write_report(docs: Path, name: str, runs: Sequence[tuple[str, int, str, Path | None]]) -> None:
    """Gather the runs of a study, write ``<name>.json`` and its pictures.

    :param docs: folder to write to.
    :param name: of the study.
    :param runs: condition, seed, command and folder of each, in the order in which they are to stand; None for the
        folder of one that was run elsewhere: what is recorded of it stays.
    """
    before = {record["command"]: record for record in recorded(docs, name)}
    records = [
        before[command] if path is None else gather(condition, seed, command, Run.open(str(path), kind=RunConfig))
        for condition, seed, command, path in runs
    ]
    docs.mkdir(exist_ok=True)
    path = docs / f"{name}.json"
    path.write_text(json.dumps({"study": name, "runs": records}, indent=1) + "\n")
    draw_curves(records, docs / f"{name}.png")
    if runs[0][3] is not None:
        copy_pictures(runs[0][3], docs, name)
    judged = [*bodies_table(records), "", *places_table(records)] if differ(records) else probe_table(records)
    print("\n".join([*success_table(records), "", *area_table(records), "", *judged]))
    print(f"written to {path}")


def recorded(docs: Path, name: str) -> list[dict[str, Any]]:
    """What is known of the runs of a study already, here or elsewhere.

    :param docs: folder of ``<name>.json``, if there is one.
    :param name: of the study.
    """
    path = docs / f"{name}.json"
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def copy_pictures(run: Path, docs: Path, name: str) -> None:
    """The last picture of a run's training, and that of its probe, as ``<name>-views.png`` and ``<name>-probe.png``.

    :param run: its folder.
    """
    last = sorted((run / "pictures").glob("*.png"))[-1:]
    probe = run / "probe.png"
    for what, picture in [*(("views", path) for path in last), *([("probe", probe)] if probe.is_file() else [])]:
        shutil.copyfile(picture, docs / f"{name}-{what}.png")


def gather(condition: str, seed: int, command: str, run: Run) -> dict[str, Any]:
    """Everything that is known of a run, fit for JSON.

    :param condition: its name.
    :param seed: of the run.
    :param command: that trained it.
    :param run: evaluated, or probed.
    """
    record = {"condition": condition, "seed": seed, "command": command} | curves(run)
    evaluated, probed, made = (run.path / name for name in ("eval.json", "probe.json", ORIGIN))
    if made.is_file():
        record["trained"] = json.loads(made.read_text())
    if evaluated.is_file():
        found = json.loads(evaluated.read_text())
        record |= {key: found[key] for key in ("commit", "machine")}
        record["success"] = {
            name: {what: result["summary"][what] for what in ("success_at_end", "success_once", "return")}
            for name, result in found["results"].items()
        }
    if probed.is_file():
        found = json.loads(probed.read_text())
        record |= {key: found[key] for key in ("commit", "machine")}
        record["probe"] = {key: found[key] for key in PROBED if key in found}
    return record


def curves(run: Run) -> dict[str, Any]:
    """What was logged over time, as pairs of step and value; ``minutes`` is the wall time of training.

    :param run: a trained run.
    """
    with open(run.path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [row.get("time/total_timesteps") or row.get("time/gradient_steps") or "" for row in rows]
    found: dict[str, Any] = {}
    for name, column in SERIES.items():
        values = [(step, row.get(column)) for step, row in zip(steps, rows, strict=True)]
        pairs = [[int(float(step)), round(float(value), 4)] for step, value in values if step and value]
        found[name] = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), POINTS)).astype(int))]
    times = [row.get("time/time_elapsed") or row.get("time/seconds") for row in rows]
    elapsed = [float(seconds) for seconds in times if seconds]
    whole = sum(one for one, after in zip(elapsed, [*elapsed[1:], -1.0], strict=True) if after < one)
    found["steps"] = max((int(float(step)) for step in steps if step), default=0)
    found["minutes"] = round(whole / 60, 1)  # a run that goes on counts from 0 again
    return found


def conditions(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Records by condition, in the order in which conditions first come."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["condition"], []).append(record)
    return found


def pooled(records: Sequence[dict[str, Any]], shown: str = "as trained") -> tuple[int, int]:
    """Successes at the end, and episodes, of several seeds together.

    :param shown: what the policy was shown, as ``evaluate`` names it.
    """
    results = [record["success"][shown]["success_at_end"] for record in records]
    return sum(result["k"] for result in results), sum(result["n"] for result in results)


def success_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: each condition's success over its seeds, and its difference from the first condition.

    The interval of a difference is Welch's over seeds: it says how sure the comparison of methods is. The Wilson
    interval of the pooled episodes says how well these very policies do, on these seeds of the episodes.
    """
    groups = {name: group for name, group in conditions(records).items() if all("success" in r for r in group)}
    lines = [
        "| condition | seeds | steps | minutes | success at end, pooled | each seed, % | the first minus this |",
        "|---|---|---|---|---|---|---|",
    ]
    first = None
    for name, group in groups.items():
        k, n = pooled(group)
        low, high = wilson_interval(k, n)
        rates = [100 * pooled([record])[0] / pooled([record])[1] for record in group]
        first = first or rates
        difference = "" if rates is first else difference_text(first, rates)
        minutes = np.mean([record["minutes"] for record in group])
        lines.append(
            f"| {name} | {len(group)} | {group[0]['steps']:,} | {minutes:.0f} | "
            f"{k}/{n} ({100 * low:.0f} to {100 * high:.0f} %) | {', '.join(f'{rate:.0f}' for rate in rates)} | "
            f"{difference} |"
        )
    return lines if first else []


def difference_text(first: Sequence[float], other: Sequence[float]) -> str:
    """Difference of two means with Welch's 95 % interval, in points; none of single seeds, or where nothing varies."""
    low, high = welch_interval(first, other)
    interval = "" if np.isnan(low) else f" ({low:z.0f} to {high:z.0f})"
    return f"{np.mean(first) - np.mean(other):z.0f}{interval}"


def ratio_text(first: Sequence[float], other: Sequence[float]) -> str:
    """Ratio of two means with Fieller's 95 % interval; of single seeds there is no interval, of a mean of 0 nothing."""
    if not np.mean(other):
        return "–"
    low, high = ratio_interval(first, other)
    end = f"to {high:.2f}" if np.isfinite(high) else "and more"
    interval = "" if np.isnan(low) else f" ({low:.2f} {end})"
    return f"{np.mean(first) / np.mean(other):.2f}{interval}"


def area(curve: Sequence[Sequence[float]]) -> float:
    """The mean of a curve over the whole run: its area divided by its last step.

    :param curve: pairs of step and value; linear in between, and from 0 before the first.
    """
    steps, values = np.array([[0.0, 0.0], *curve]).T
    return float(np.trapezoid(values, steps) / steps[-1])


def area_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: the area under each condition's curve of deterministic evaluations, compared with the first's."""
    groups = {
        name: [100 * area(record["evaluated_success_at_end"]) for record in group]
        for name, group in conditions(records).items()
        if all(record["evaluated_success_at_end"] for record in group)
    }
    lines = [
        "| condition | seeds | mean success over the run, % | interquartile mean | each seed | "
        "the first is so many times this | the first minus this |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(groups.values()), [])
    for name, areas in groups.items():
        ratio, difference = "", ""
        if areas is not first:
            ratio, difference = ratio_text(first, areas), difference_text(first, areas)
        each = ", ".join(f"{value:.0f}" for value in areas)
        lines.append(
            f"| {name} | {len(areas)} | {np.mean(areas):.0f} | {interquartile_mean(areas):.0f} | {each} | "
            f"{ratio} | {difference} |"
        )
    return lines if first else []


def ablation_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: what the first condition's policies do when they are shown something else."""
    group = [record for record in next(iter(conditions(records).values())) if "success" in record]
    if not group:
        return []
    lines = ["| the same policies, shown | success at end, pooled |", "|---|---|"]
    for shown in group[0]["success"]:
        k, n = pooled(group, shown)
        low, high = wilson_interval(k, n)
        lines.append(f"| {shown} | {k}/{n} ({100 * low:.0f} to {100 * high:.0f} %) |")
    return lines


def probe_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: how well bodies are found from keypoints alone, and what sits on what; means over seeds."""
    groups = {name: group for name, group in conditions(records).items() if all("probe" in r for r in group)}
    if not groups:
        return []
    bodies = list(next(iter(groups.values()))[0]["probe"]["probe_error_cm"])
    heads = [f"{body}, cm" for body in bodies] + [f"{body} by constant / random / autoencoder" for body in bodies]
    heads += ["views apart, cm (not weighted)", "keypoints that count", f"on {bodies[-1]}"]
    lines = ["| condition | seeds | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for name, group in groups.items():
        probes = [record["probe"] for record in group]
        cells = [spread_text([probe["probe_error_cm"][body]["keypoints"] for probe in probes]) for body in bodies]
        for body in bodies:
            cells.append(" / ".join(mean_text(probes, body, other) for other in COMPARED))
        cells += sitting_texts(probes, bodies[-1])
        lines.append(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    return lines


def differ(records: Sequence[dict[str, Any]]) -> bool:
    """Whether the bodies that probes look for are not the same in all, since conditions are of different tasks."""
    return len({tuple(record["probe"]["probe_error_cm"]) for record in records if "probe" in record}) > 1


def bodies_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, for conditions of different tasks: a row for each body that moves, means over seeds, in cm.

    In bold is what does not reach :data:`BARS`: what is less than so many times the keypoints' error.
    """
    lines = [
        "| pretraining | seeds | body | keypoints | constant | true first body | random encoder | autoencoder |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in conditions(records).items():
        errors = [record["probe"]["probe_error_cm"] for record in group]
        for body in errors[0]:
            mine = np.mean([error[body]["keypoints"] for error in errors])
            cells = []
            for other, times in BARS.items():
                values = [error[body][other] for error in errors if error[body].get(other) is not None]
                cells.append("–" if not values else _marked(f"{np.mean(values):.1f}", np.mean(values) < times * mine))
            if np.mean([error[body]["constant"] for error in errors]) >= STANDING:
                own = spread_text([error[body]["keypoints"] for error in errors])
                lines.append(f"| {name} | {len(group)} | {body} | {own} | {' | '.join(cells)} |")
    return lines


def places_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, for conditions of different tasks: how far views are apart, and what stays on its body."""
    lines = [
        "| pretraining | minutes | keypoints that count | views apart, cm (not weighted) | on the same body, % |",
        "|---|---|---|---|---|",
    ]
    for name, group in conditions(records).items():
        probes = [record["probe"] for record in group]
        apart, counted, _ = sitting_texts(probes, next(iter(probes[0]["on_body"])))
        share = spread_text([100 * probe["same_body_share"] for probe in probes], 0)
        minutes = np.mean([record["minutes"] for record in group])
        lines.append(f"| {name} | {minutes:.0f} | {counted} | {apart} | {share} |")
    return lines


def _marked(text: str, mark: bool) -> str:
    return f"**{text}**" if mark else text


def sitting_texts(probes: Sequence[dict[str, Any]], body: str) -> list[str]:
    """How far the views are apart, how many keypoints count, and how many sit on a body; dashes in two dimensions."""
    if any("counted" not in probe for probe in probes):
        return ["–", "–", "–"]
    apart, plain = (
        [np.nan if probe.get(name) is None else probe[name] for probe in probes]
        for name in ("view_disagreement_cm", "view_disagreement_unweighted_cm")
    )
    return [
        f"{spread_text(apart)} ({np.mean(plain):.1f})",
        spread_text([probe["counted"] for probe in probes], 0),
        spread_text([len(probe["on_body"][body]) for probe in probes], 0),
    ]


def mean_text(probes: Sequence[dict[str, Any]], body: str, other: str) -> str:
    """Mean error of what the keypoints are compared with, over the seeds where it was; a dash where it was on none."""
    errors = [error for probe in probes if (error := probe["probe_error_cm"][body].get(other)) is not None]
    return f"{np.mean(errors):.1f}" if errors else "–"


def spread_text(values: Sequence[float], digits: int = 1) -> str:
    """A mean, and the extremes of several seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


PANELS = {
    "evaluated_success_at_end": ("environment steps (actions)", "success at end, %", 100.0),
    "reconstruction_ratio": ("gradient steps", "reconstruction error, of the mean image's", 1.0),
    "view_disagreement_cm": ("gradient steps", "views apart, cm", 1.0),
}
"""What is drawn of each kept curve: axes and a factor."""


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Success over steps, or of pretrainings the quality of the keypoints.

    A thin line for each seed, a thick one for the mean of each condition.

    :param records: of a study.
    :param path: of the picture to write.
    """
    from matplotlib import colormaps  # slow to import, and only needed here
    from matplotlib.figure import Figure

    trained = any(record["evaluated_success_at_end"] for record in records)
    names = ["evaluated_success_at_end"] if trained else ["reconstruction_ratio", "view_disagreement_cm"]
    figure = Figure(figsize=(8, 4.5 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), squeeze=False)[:, 0]
    palette = colormaps["tab20" if len(conditions(records)) > 10 else "tab10"]
    for axes, name in zip(panels, names, strict=True):
        x, y, factor = PANELS[name]
        for number, (condition, group) in enumerate(conditions(records).items()):
            if all(record[name] for record in group):
                series = [np.array(record[name]) * [1.0, factor] for record in group]
                _draw_mean(axes, series, palette(number % palette.N), f"{condition} (n = {len(group)})")
        axes.set(xlabel=x, ylabel=y)
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=110)


def _draw_mean(axes: Any, series: Sequence[np.ndarray], colour: Any, label: str) -> None:
    """Curves (P, 2) of several seeds, and their mean where all of them have got to."""
    for one in series:
        axes.plot(one[:, 0], one[:, 1], color=colour, alpha=0.25, linewidth=1)
    last = min(one[-1, 0] for one in series)
    steps = np.unique(np.concatenate([one[:, 0] for one in series]))
    steps = steps[steps <= last]
    mean = np.mean([np.interp(steps, one[:, 0], one[:, 1]) for one in series], 0)
    axes.plot(steps, mean, color=colour, linewidth=2.5, label=label)


def gradient_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: norms of the two gradients on the encoder over the run, of the first condition; means over seeds."""
    group = [r for r in next(iter(conditions(records).values())) if len(r["encoder_gradient_from_policy"]) >= 4]
    if not group:
        return []
    lines = ["| part of the run | auxiliary loss | policy | policy / auxiliary |", "|---|---|---|---|"]
    for part in range(4):
        means = []
        for name in ("encoder_gradient_from_auxiliary", "encoder_gradient_from_policy"):
            series = [np.array(record[name])[:, 1] for record in group]
            means.append(float(np.mean([np.array_split(values, 4)[part].mean() for values in series])))
        share = means[1] / means[0]
        quarter = ("first", "second", "third", "last")[part]
        lines.append(f"| {quarter} quarter | {means[0]:.2f} | {means[1]:.3f} | {share:.3f} |")
    return lines


TABLES = {
    "success": success_table,
    "area": area_table,
    "ablations": ablation_table,
    "probe": probe_table,
    "bodies": bodies_table,
    "places": places_table,
    "gradients": gradient_table,
}
"""Kinds of tables that a page may ask for."""
