"""A finished run as a folder that is ready for a model hub: ``python -m experiments.card --run PATH``.

It holds the newest checkpoint (safetensors), the configuration, the cameras, the evaluation, a picture, a video, and a
model card with the results, whose head the Hugging Face Hub reads. It is a run folder itself: whoever downloads it can
evaluate, film and load it.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from envs.errors import UserError
from envs.registry import is_cameras_file
from experiments.options.cli import flat, parse, run_main, typed
from experiments.options.config import TrainConfig
from experiments.reports.page import files_of_run, template
from experiments.runs import Run
from experiments.runs.folder import CAMERAS, ORIGIN
from experiments.studies.report import curves
from experiments.training.checkpointing import is_finished
from kp3d_rl.storage.files import parse_json, read_whole, remove

COPIED = ("config.yaml", "rig.json", CAMERAS, ORIGIN, "metrics.csv", "eval.json", "probe.json", "policy.onnx")
"""Files of the run that go along, where they are there."""
SHOWN = {"picture": "keypoints.png", "video": "replay.mp4"}
"""What there is to look at, by kind."""
LIBRARY = "kp3d_rl"
KINDS = {
    "keypoint3d": "3D keypoints that it discovered by itself from several cameras, fused over them",
    "keypoint2d": "2D keypoints that it discovered by itself in each of several cameras' views",
    "state": "the simulator's state",
}
"""What policies act on; other encoders by their name."""


@dataclass(frozen=True)
class CardConfig:
    """What goes to a hub.

    :param env: environment; with no ``run`` its newest run is taken.
    :param run: run folder, or its name within the environment.
    :param out: folder to write; by default "card" in the run's folder.
    :param name: of the model; by default that of environment and run.
    :param license: identifier of a licence, as "mit", for the model.
    """

    env: str | None = None
    run: str | None = None
    out: Path | None = None
    name: str | None = None
    license: str | None = None


def main(argv: Sequence[str]) -> None:
    """Open the run, gather, write."""
    config = parse(CardConfig, argv)
    run = Run.open(config.run, config.env)
    evaluated = evaluation_of(run)
    out = config.out or run.path / "card"
    media = files_of_run(run.path)
    text = card(run, evaluated, config.name or f"{run.config.env}-{run.path.name}", config.license, media)
    write_folder(run, out, text, media)
    if "video" not in media:
        print(f"note: there is no video in it: {run.command('video')}, then once more")
    print(f"{out}: ready to upload, for example `hf upload <user>/<name> {out}`")


def evaluation_of(run: Run) -> dict[str, Any]:
    """How good the finished run is.

    :raises UserError: where it is not finished, or was not evaluated as it is at its end.
    """
    if not run.steps() or not is_finished(run.load()):
        raise UserError(f"{run.path} is not finished: {run.command('resume')}")
    path = run.path / "eval.json"
    if not path.is_file():
        raise UserError(f"{run.path} was not evaluated, and a card without results is none: {run.command('evaluate')}")
    found = parse_json(read_whole(path), str(path))
    if found.get("checkpoint") != run.checkpoints.latest():
        at = found.get("checkpoint")
        raise UserError(f"{path} is of the checkpoint at step {at}, not of the newest: {run.command('evaluate')}")
    if found.get("reject_outliers"):
        how = "was made with outliers left out, and a card is of the policy as it was trained"
        raise UserError(f"{path} {how}: {run.command('evaluate')}")
    return found


def write_folder(run: Run, out: Path, text: str, media: Mapping[str, Path]) -> None:
    """Write the folder; one that stood there is replaced when the new one is whole.

    :param run: whose files are copied.
    :param out: the folder.
    :param text: of the card.
    :param media: "picture" and "video", where there are such.
    :raises UserError: where something else stands there, or it cannot be written.
    """
    out = out.resolve()
    if out.exists() and not is_card(out):
        raise UserError(f"{out} is there already and is no card: name another folder with --out")
    partial = out.with_name(f".{out.name}.partial")
    try:
        remove(partial)
        partial.mkdir(parents=True)
        for name in COPIED:
            if (run.path / name).is_file():
                shutil.copyfile(run.path / name, partial / name)
        step = run.checkpoints.latest()
        checkpoint = run.checkpoints.path(step)  # type: ignore[arg-type]
        shutil.copytree(checkpoint, partial / "checkpoints" / checkpoint.name)
        for kind, name in SHOWN.items():
            if kind in media:
                shutil.copyfile(media[kind], partial / name)
        (partial / "README.md").write_text(text)
        remove(out)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        remove(partial)


def is_card(folder: Path) -> bool:
    """Whether a folder is an earlier card with nothing else in it, which may be replaced."""
    own = {*COPIED, "README.md", "checkpoints", *SHOWN.values()}
    text = folder / "README.md"
    return (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} <= own
        and text.is_file()
        and text.read_text(errors="replace").startswith(f"---\nlibrary_name: {LIBRARY}\n")
    )


def card(run: Run, evaluated: Mapping[str, Any], name: str, license_name: str | None, media: Mapping[str, Path]) -> str:
    """The text of a model card.

    :param run: finished.
    :param evaluated: what ``eval.json`` says.
    :param name: of the model.
    :param license_name: its licence; None: none is named.
    :param media: "picture" and "video", where there are such.
    """
    config: TrainConfig = run.config
    seen = KINDS.get(config.encoder.kind, f"what an encoder of kind '{config.encoder.kind}' sees")
    made = json.loads((run.path / ORIGIN).read_text()) if (run.path / ORIGIN).is_file() else {}
    known = curves(run)
    probe = run.path / "probe.json"
    where = f" at commit {made['commit']} on {made['machine']}" if made else ""
    return template("card.md.j2", autoescape=False).render(
        name=name,
        metadata=yaml.safe_dump(metadata(config, evaluated, name, license_name), sort_keys=False),
        what=f"A policy for `{config.env}`, trained with {config.algorithm.upper()} of "
        f"{'sb3-contrib' if config.algorithm == 'tqc' else 'Stable-Baselines3'}. It acts on {seen}.",
        evaluated=evaluated_text(evaluated),
        results=result_rows(evaluated),
        caveat="They are of one training run; another seed may do better or worse.",
        probe=probe_rows(json.loads(probe.read_text())) if probe.is_file() else [],
        keypoints=config.encoder.finds_keypoints,
        picture="picture" in media,
        video="video" in media,
        typed_env=f" ENV={config.env}" if ":" in config.env else "",
        command=command(config),
        trained=f"{known['steps']:,} environment steps, seed {config.seed}, {known['minutes']:.0f} minutes{where}.",
    )


def command(config: TrainConfig) -> str:
    """What to type to train it again: every option that is not the default.

    :param config: of the run.
    """
    default, own = flat(TrainConfig()), flat(config)
    changed = {name: value for name, value in own.items() if value != default[name]}
    for name in ("env", "run", "seed"):
        changed.pop(name, None)
    if "cameras" in changed and is_cameras_file(config.cameras):
        changed["cameras"] = CAMERAS  # which lies beside the card
    arguments = f' ARGS="{shlex.join(typed(changed))}"' if changed else ""
    return f"make train ENV={config.env} SEED={config.seed}{arguments}"


def metadata(config: TrainConfig, evaluated: Mapping[str, Any], name: str, license_name: str | None) -> dict[str, Any]:
    """The head of a card, which hubs read: https://huggingface.co/docs/hub/model-cards."""
    summary = evaluated["results"]["as trained"]["summary"]
    low, high = summary["return"]["interval"]
    mean = summary["return"]["mean"]
    metrics = [
        {"type": "success_rate", "name": "success at end", "value": round(rate(summary["success_at_end"]), 4)},
        {"type": "mean_reward", "name": "mean return", "value": f"{mean:.2f} ({low:.2f} to {high:.2f})"},
    ]
    result = {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": {"type": config.env, "name": config.env},
        "metrics": [metric | {"verified": False} for metric in metrics],
    }
    tags = ["reinforcement-learning", "robotics", "mujoco", config.env, config.algorithm, config.encoder.kind]
    if config.encoder.finds_keypoints:
        tags.insert(3, "keypoints")
    head = {"library_name": LIBRARY, "pipeline_tag": "reinforcement-learning", "tags": tags}
    return head | ({"license": license_name} if license_name else {}) | {
        "model-index": [{"name": name, "results": [result]}]
    }  # fmt: skip


def rate(counted: Mapping[str, Any]) -> float:
    """Share of successes."""
    return counted["k"] / counted["n"]


def evaluated_text(evaluated: Mapping[str, Any]) -> str:
    """How it was evaluated, in a sentence."""
    episodes = evaluated["results"]["as trained"]["summary"]["episodes"]
    return (
        f"Deterministic evaluation of the checkpoint at step {evaluated['checkpoint']:,} on {episodes} episodes of "
        f"block {evaluated['seed']} of the evaluation seeds, which training never sees."
    )


def result_rows(evaluated: Mapping[str, Any]) -> list[list[str]]:
    """A row for everything that the policy was shown."""
    rows = []
    for shown, result in evaluated["results"].items():
        end, once, gained = (result["summary"][what] for what in ("success_at_end", "success_once", "return"))
        interval = " to ".join(f"{100 * value:.0f}" for value in end["interval"])
        returns = f"{gained['mean']:.1f} ({gained['interval'][0]:.1f} to {gained['interval'][1]:.1f})"
        rows.append([shown, f"{end['k']}/{end['n']}", f"{interval} %", f"{once['k']}/{once['n']}", returns])
    return rows


def probe_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row for every body that the probe looked for."""
    rows = []
    for body, errors in found.get("probe_error_cm", {}).items():
        others = [errors.get(other) for other in ("keypoints", "constant", "random encoder")]
        rows.append([body, *("–" if value is None else f"{value:.1f}" for value in others)])
    return rows


if __name__ == "__main__":
    run_main(main)
