"""What is known of the runs that a report is made of: from sweeps, run folders, or a study's data.

Whatever cannot be compared is left out with one line that says why; nothing is dropped in silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envs.errors import UserError
from experiments.options.cli import flat
from experiments.options.config import TrainConfig
from experiments.options.files import from_yaml
from experiments.runs import Run
from experiments.studies.report import curves
from experiments.training.checkpointing import is_finished
from kp3d_rl.storage.files import DamagedError, parse_json, read_whole

CURVE = "evaluated_success_at_end"
"""The curve of a run: deterministic evaluations during training."""
NOT_OF_THE_METHOD = ("env", "run", "seed", "device", "threads", "render.workers", "render.backend")
"""Options in which runs of one method may differ; so may all that say what is logged."""
PATHS = ("pretrained", "encoder.weights")
"""Options that name another run, of each seed another one: what counts is whether there is one."""
OF_THE_TASK = ("total_steps", "action_repeat", "redraw", "cameras", "image_size", "log.evaluation_episodes")
"""Options in which methods that are compared on a task must not differ."""
LARGEST = 50_000_000
"""Bytes of the largest data that are read."""


@dataclass(frozen=True)
class Result:
    """What is known of a run.

    :param label: by which it is named.
    :param env: task.
    :param method: what is compared.
    :param seed: of the run.
    :param curve: pairs of environment step and share of evaluated episodes that end in success.
    :param steps: environment steps that were trained for.
    :param minutes: of training.
    :param success: episodes that ended in success, and episodes, of the evaluation at the end; None: there is none.
    :param probe: what keypoints were found to be worth; None: nobody asked.
    :param options: by dotted name; empty where a study's data do not have them.
    :param folder: of the run; None of a study's data.
    :param made: commit, machine and command, as far as they are known.
    :param plan: sweep or study that it was made for, which says what is compared; empty: none.
    """

    label: str
    env: str
    method: str
    seed: int
    curve: tuple[tuple[float, float], ...]
    steps: int
    minutes: float
    success: tuple[int, int] | None = None
    probe: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    made: dict[str, str] = field(default_factory=dict)
    plan: str = ""

    @property
    def score(self) -> float | None:
        """Success at the end: of the evaluation where there is one."""
        return self.success[0] / self.success[1] if self.success and self.success[1] else None


@dataclass(frozen=True)
class Gathered:
    """What a report is made of.

    :param results: of runs that can be compared, in the order of their sources.
    :param left_out: lines that say what was left out and why.
    """

    results: tuple[Result, ...]
    left_out: tuple[str, ...]

    @property
    def envs(self) -> list[str]:
        """Tasks, in the order in which they come."""
        return list(dict.fromkeys(result.env for result in self.results))

    @property
    def methods(self) -> list[str]:
        """What is compared, in the order in which it comes."""
        return list(dict.fromkeys(result.method for result in self.results))

    def of(self, env: str | None = None, method: str | None = None) -> list[Result]:
        """Results of a task, of a method, or of both."""
        return [r for r in self.results if env in (None, r.env) and method in (None, r.method)]


def gather(sources: Sequence[Path]) -> Gathered:
    """Read all sources.

    :param sources: run folders; folders of such; sweeps' folders; JSON files of studies.
    :raises UserError: for a source that is nothing of this, or where nothing is left to report.
    """
    results: list[Result] = []
    left_out: list[str] = []
    for source in sources:
        for found in _of_source(source):
            if isinstance(found, str):
                left_out.append(found)
            elif all(found.label != other.label for other in results):
                results.append(found)
            else:
                left_out.append(f"{found.label}: is named twice")
    alike, different = of_one_kind(results)
    kept, twice = once_per_seed(told_apart(named_methods(alike)))
    left_out += different + twice
    if not kept:
        reasons = f": {'; '.join(left_out[:3])}" if left_out else ""
        raise UserError(f"nothing to report in {', '.join(map(str, sources))}{reasons}")
    return Gathered(tuple(kept), tuple(left_out))


def _of_source(source: Path) -> Iterable[Result | str]:
    """Results and lines of what is left out."""
    if source.suffix == ".json" and source.is_file():
        return _of_study(source)
    if (source / "sweep.json").is_file():
        return _of_sweep(source)
    if (source / "config.yaml").is_file():
        return _of_run(source)
    folders = sorted(path.parent for path in source.glob("*/config.yaml")) if source.is_dir() else []
    if not folders:
        kinds = "a run folder, a folder of runs, a sweep's folder or a study's JSON file"
        raise UserError(f"no runs at {source}: it must be {kinds}")
    return [found for folder in folders for found in _of_run(folder)]


def _json(path: Path) -> Any:
    """What a JSON file holds.

    :raises UserError: where it is damaged.
    """
    try:
        return parse_json(read_whole(path, LARGEST), str(path))
    except (DamagedError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _of_study(path: Path) -> list[Result | str]:
    """Runs of a study's data, of those that have a policy."""
    records = _json(path)
    records = records.get("runs") if isinstance(records, dict) else None
    if not isinstance(records, list):
        raise UserError(f"{path} is no study's data: it has no list of 'runs'")
    found: list[Result | str] = []
    for record in records:
        try:
            found.append(_of_record(record, path))
        except (KeyError, TypeError, ValueError) as error:
            found.append(f"{path}: a run without {error}: only runs with a policy can be compared")
    return found


def _of_record(record: dict[str, Any], path: Path) -> Result | str:
    words = dict(word.split("=", 1) for word in record["command"].split() if "=" in word)
    success = record.get("success", {}).get("as trained", {}).get("success_at_end")
    label = f"{path.stem}/{record['condition']} seed {record['seed']}"
    if not record[CURVE] and success is None:
        return f"{label}: was never evaluated"
    made = {"commit": record.get("commit", ""), "machine": record.get("machine", ""), "command": record["command"]}
    return Result(
        label, words["ENV"], record["condition"], int(record["seed"]),
        tuple((float(step), float(value)) for step, value in record[CURVE]),
        int(record["steps"]), float(record["minutes"]),
        None if success is None else (int(success["k"]), int(success["n"])),
        record.get("probe"), {}, None, made, path.stem,
    )  # fmt: skip


def _of_sweep(folder: Path) -> list[Result | str]:
    """Runs of a sweep, with the methods that its plan names."""
    try:
        return _of_state(folder, _json(folder / "sweep.json"))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        problem = f"{type(error).__name__} {error}"
        advice = "the same `make sweep` writes it anew"
        raise UserError(f"{folder / 'sweep.json'} is damaged ({problem}): {advice}") from None


def _of_state(folder: Path, state: dict[str, Any]) -> list[Result | str]:
    """Runs of a sweep whose file holds this."""
    found: list[Result | str] = [f"{folder.name}: a node was left out, {reason}" for reason in state["refused"]]
    root = folder.absolute().parents[2]  # of runs/sweeps/<name>; "runs" may be a link to another disk
    for run in state["runs"]:
        path = root / run["folder"]
        problems = [attempt["problem"] for attempt in run["attempts"] if attempt["problem"]]
        there = _of_run(path) if (path / "config.yaml").is_file() else []
        if run["status"] == "failed" and not any(isinstance(result, Result) for result in there):
            found.append(f"{run['label']}: failed ({problems[-1] if problems else 'unknown'})")
        elif not there:
            found.append(f"{run['label']}: has not begun")
        found += [
            replace(result, method=run["method"], plan=folder.name) if isinstance(result, Result) else result
            for result in there
            if isinstance(result, Result) or run["status"] != "failed"
        ]
    return found


def _of_run(folder: Path) -> list[Result | str]:
    """A finished training, and what cannot be said of it; or why it cannot be compared."""
    label, notes = f"{folder.parent.name}/{folder.name}", []
    try:
        config = from_yaml(folder / "config.yaml")
        if not isinstance(config, TrainConfig):
            return [f"{label}: is a pretraining, it has no policy"]
        run = Run.open(str(folder), config.env)
        steps = run.steps()
        if not steps or not is_finished(run.load()):
            done = f"stopped or crashed at step {steps[-1]:,}" if steps else "has no checkpoint"
            return [f"{label}: is not finished ({done} of {config.total_steps:,}): make train RESUME={folder}"]
        known = curves(run)
        evaluated = _json(folder / "eval.json") if (folder / "eval.json").is_file() else {}
        success = evaluated.get("results", {}).get("as trained", {}).get("summary", {}).get("success_at_end")
        counted = None if success is None else (int(success["k"]), int(success["n"]))
        if counted is not None and (evaluated.get("checkpoint") != steps[-1] or evaluated.get("reject_outliers")):
            how = f"at step {evaluated.get('checkpoint')}, not as it ended"
            notes.append(f"{label}: its evaluation is of another kind ({how}): make evaluate RUN={folder}")
            counted = None
        probe = _json(folder / "probe.json") if (folder / "probe.json").is_file() else None
        origin = _json(folder / "origin.json") if (folder / "origin.json").is_file() else {}
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{label}: cannot be read ({error})"]
    curve = tuple((float(step), float(value)) for step, value in known[CURVE])
    if counted is None and not curve:
        return [*notes, f"{label}: was never evaluated: make evaluate RUN={folder}"]
    result = Result(
        label, config.env, "", config.seed, curve, known["steps"], known["minutes"], counted, probe, flat(config),
        folder, {key: str(origin.get(key, "")) for key in ("commit", "machine")},
    )  # fmt: skip
    return [result, *notes]


# -- methods and tasks -----------------------------------------------------------------------------------------------


def named_methods(results: Sequence[Result]) -> list[Result]:
    """Give each result whose method has no name one: encoder, algorithm, and what else differs between such.

    :param results: of all sources.
    """
    alike: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        if not result.method:
            alike.setdefault(_short(result), {}).setdefault(result.env, []).append(result.options)
    # Within each task: presets may differ from task to task.
    names = {
        short: dict.fromkeys(name for options in by_env.values() for name in differing(options))
        for short, by_env in alike.items()
    }
    named = []
    for result in results:
        own = [] if result.method else [f"{name} {result.options[name]}" for name in names[_short(result)]]
        named.append(replace(result, method=result.method or " ".join([_short(result), *own])))
    return named


def told_apart(results: Sequence[Result]) -> list[Result]:
    """Methods that have one name in several sweeps but other options there, by the sweep's name.

    :param results: with methods.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.env, result.method), []).append(result)
    strange = {
        method
        for (_, method), group in groups.items()
        if len({r.plan for r in group}) > 1 and differing([r.options for r in group if r.options])
    }
    return [replace(r, method=f"{r.method} ({r.plan})") if r.method in strange and r.plan else r for r in results]


def _short(result: Result) -> str:
    return f"{result.options['encoder.kind']} {result.options['algorithm']}"


def differing(options: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the options, of methods alone, that are not the same everywhere.

    :param options: of several runs.
    """
    names = dict.fromkeys(name for some in options for name in some)
    left = (*NOT_OF_THE_METHOD, *OF_THE_TASK)
    told = [name for name in names if name not in left and not name.startswith("log.")]

    def value(some: dict[str, Any], name: str) -> str:
        return str(some.get(name) is not None) if name in PATHS else repr(some.get(name))

    return [name for name in told if len({value(some, name) for some in options}) > 1]


def of_one_kind(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Results that can be compared, and lines about the others.

    Of each task those stay whose number of steps, repetition of actions, views and so on most have, and what a plan
    compares on purpose.

    :param results: of all sources.
    """
    kept, left_out = [], []
    for env in dict.fromkeys(result.env for result in results):
        here = [result for result in results if result.env == env]
        for name in OF_THE_TASK:
            known = [result for result in here if result.options and not result.plan]
            if len(values := Counter(repr(result.options.get(name)) for result in known)) > 1:
                usual = values.most_common(1)[0][0]
                for result in known:
                    if (own := repr(result.options.get(name))) != usual:
                        here.remove(result)
                        left_out.append(f"{result.label}: has {name} {own}, most runs of {env} have {usual}")
        kept += here
    return kept, left_out


def once_per_seed(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Of runs of one method and seed on a task the first, and lines about the others.

    :param results: with methods.
    """
    kept: dict[tuple[str, str, int], Result] = {}
    left_out = []
    for result in results:
        if kept.setdefault((result.env, result.method, result.seed), result) is not result:
            what = f"another run of {result.method} on {result.env} has seed {result.seed}, too"
            left_out.append(f"{result.label}: {what}")
    return list(kept.values()), left_out


def to_json(gathered: Gathered) -> str:
    """The numbers of a report, for who wants to draw them otherwise.

    :param gathered: what it is made of.
    """
    rows = [
        {
            "label": r.label, "env": r.env, "method": r.method, "seed": r.seed, "curve": r.curve, "steps": r.steps,
            "minutes": r.minutes, "success": r.success, **r.made,
        }
        for r in gathered.results
    ]  # fmt: skip
    return json.dumps({"runs": rows, "left_out": gathered.left_out}, indent=1) + "\n"
