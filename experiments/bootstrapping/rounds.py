"""The rounds: detect in all views, triangulate, check, choose, project the labels, train; each can be gone on with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.errors import UserError
from envs.scenes.footage import Footage
from experiments.bootstrapping.config import BootstrapConfig
from experiments.bootstrapping.filming import Studio, Subject, as_labelled, calibrated, to_rig, truth
from experiments.bootstrapping.folder import CHOICE, GIVEN_UP, LABELS, TRAINING, BootstrapRun
from experiments.bootstrapping.judging import Judgement, judge_detector, label_precision
from experiments.runs.plain import read_json
from experiments.training.building import choose_device
from experiments.training.gradient_steps import Stopped, make_steps
from experiments.training.progress import Progress
from experiments.training.recording import StopRequest
from kp3d_rl.bootstrapping.detector import KeypointDetector
from kp3d_rl.bootstrapping.plausibility import Verdict, judge
from kp3d_rl.bootstrapping.selection import reproject, score_frames, select_frames
from kp3d_rl.bootstrapping.training import DetectorTraining, LabelledImages
from kp3d_rl.cameras import Rig
from kp3d_rl.storage.files import write_tensors, write_whole
from kp3d_rl.triangulation import RobustPoints, triangulate_robustly


@dataclass(frozen=True)
class Labels:
    """What a round is trained on beside the first labels.

    :param images: with their labels.
    :param numbers: what there is to say about them.
    """

    images: LabelledImages
    numbers: dict[str, Any]


@dataclass
class Material:
    """What is filmed once and used in all rounds.

    :param labelled: the first labels.
    :param sequences: unlabelled ones.
    :param test: what is judged by.
    :param rig: of the sequences, as somebody measured it.
    :param held_out: how many of the test's views, the first ones, it is judged by: of the hand no training sees their
        cameras, of an environment they are its own, which the first labels are of, too.
    """

    labelled: LabelledImages
    sequences: list[Footage]
    test: list[Footage]
    rig: Rig
    held_out: int


def film(config: BootstrapConfig, studio: Studio, stop: StopRequest) -> Material:
    """Film everything.

    :param config: how much.
    :param studio: that films.
    :param stop: set by a signal.
    """
    show, done = Progress("filming", "sequences"), 0
    total = config.sequences + config.test_sequences

    def films(record: Any, count: int) -> list[Footage]:
        nonlocal done
        found = []
        for number in range(count):
            if stop:
                raise Stopped
            found.append(record(number))
            done += 1
            show(done, total)
        return found

    labelled = as_labelled(studio.label())
    sequences, test = films(studio.sequence, config.sequences), films(studio.test, config.test_sequences)
    rig = calibrated(to_rig(sequences[0].rig), config.calibration_noise, config.seed)
    return Material(labelled, sequences, test, rig, len(studio.held_out))


def run_round(
    run: BootstrapRun,
    number: int,
    before: KeypointDetector | None,
    material: Material,
    subject: Subject,
    stop: StopRequest,
) -> KeypointDetector:
    """One round, from where it was left.

    :param run: whose folder it is written to.
    :param number: of the round; 0 trains on the first labels alone.
    :param before: the detector of the round before.
    :param material: filmed.
    :param subject: what is looked for.
    :param stop: set by a signal.
    :raises UserError: where no frame is good enough; the last detector stays as it is.
    :raises Stopped: for a signal.
    """
    config = run.config
    run.folder(number).mkdir(exist_ok=True, parents=True)
    labels = None if before is None else make_labels(run, number, before, material, subject, stop)
    if labels is not None:
        say_labels(run, number, labels)
    parts = [material.labelled] if labels is None else [material.labelled, labels.images]
    torch.manual_seed(1000 * config.seed + number)
    detector = KeypointDetector(len(subject.keypoints), config.detector).to(choose_device(config.device))
    if before is not None:
        detector.load_state_dict(before.state_dict())
    training = DetectorTraining(detector, parts, config.training_of(number), 1000 * config.seed + number)
    make_steps(training, run.folder(number) / TRAINING, f"round {number}", stop)
    judgement = judge_detector(
        detector, material.test, material.held_out, config.ransac, subject.groups, config.calibration_noise
    )
    numbers = {"round": number, "loss": training.loss, "minutes_of_training": training.seconds / 60}
    numbers |= dataclasses.asdict(judgement) | ({} if labels is None else labels.numbers)
    run.finish(number, detector, numbers)
    print(describe(number, judgement), flush=True)
    return detector


def describe(number: int, judgement: Judgement) -> str:
    """What came of a round, in one line."""
    shares = ", ".join(f"PCK@{share.lstrip('0')} {100 * value:.1f} %" for share, value in judgement.pck.items())
    return f"round {number}: {shares}, AUC {100 * judgement.auc:.1f} %, 3D median {judgement.error_mm:.1f} mm"


def describe_labels(number: int, numbers: Mapping[str, Any]) -> str:
    """What a round is trained on, in one line."""
    accepted = f" of {numbers['accepted']} accepted" if "accepted" in numbers else ""
    right = f"{100 * numbers['precision']:.1f} % right"
    return f"round {number}: {numbers['labels']} labels from {numbers['frames']:.0f} frames{accepted}, {right}"


def say_labels(run: BootstrapRun, number: int, labels: Labels) -> None:
    """Print what a round is trained on.

    :raises UserError: where no image has a label; the last detector stays as it is.
    """
    if not labels.numbers["labels"]:
        raise UserError(
            f"round {number} stopped: no keypoint of {len(labels.images)} images has a label by {run.config.method}; "
            f"the detector of round {number - 1} stays in {run.folder(number - 1)}"
        )
    print(describe_labels(number, labels.numbers), flush=True)


def given_up(run: BootstrapRun) -> UserError:
    """What there is to say of a run whose next round found no frame to learn from."""
    config, number = run.config, len(run.finished_rounds())
    refused = read_json(run.folder(number) / GIVEN_UP)["refused"]
    reasons = ", ".join(f"{count} {name}" for name, count in refused.items() if count)
    return UserError(
        f"round {number} stopped: no frame of {config.sequences} sequences keeps "
        f"{config.plausibility.least_points:.0%} of its points (refused: {reasons or 'none'}): more cameras or first "
        f"steps, or weaker --plausibility options; the detector of round {number - 1} stays in {run.folder(number - 1)}"
    )


def make_labels(
    run: BootstrapRun, number: int, before: KeypointDetector, material: Material, subject: Subject, stop: StopRequest
) -> Labels:
    """Labels of a round, by the run's method; those that were made before the run was stopped are taken again.

    :raises UserError: where there are none.
    """
    config, path = run.config, run.folder(number) / LABELS
    if config.method == "self-training":
        sure = config.ransac.least_confidence
        return self_labels(detect_all(before, material, stop), material, frames_to_label(config, number), sure)
    if config.method == "oracle":
        chosen, _ = BootstrapRun.open(str(config.reference)).labels(number)
        points = torch.stack([torch.as_tensor(material.sequences[s].points[t]) for s, t in chosen])
        return labels_of(config, material, chosen, points, {})
    if path.is_file():
        return labels_of(config, material, *run.labels(number), read_json(run.folder(number) / CHOICE))
    detections = detect_all(before, material, stop)
    chosen, points, numbers = choose(config, detections, material.rig, subject, number)
    if not chosen:
        write_whole(run.folder(number) / GIVEN_UP, json.dumps(numbers).encode())
        raise given_up(run)
    index = torch.tensor(chosen)
    write_whole(run.folder(number) / CHOICE, json.dumps(numbers).encode())
    write_tensors(path, {"sequence": index[:, 0], "frame": index[:, 1], "points": points})
    return labels_of(config, material, chosen, points, numbers)


def detect_all(detector: KeypointDetector, material: Material, stop: StopRequest) -> list[tuple[Tensor, Tensor]]:
    """Where the detector finds keypoints in all views of all sequences: (T, V, K, 2) and (T, V, K) of each."""
    show, found = Progress("detecting", "sequences"), []
    for number, footage in enumerate(material.sequences):
        if stop:
            raise Stopped
        images = torch.as_tensor(footage.images)
        found.append(tuple(x.cpu().unflatten(0, images.shape[:2]) for x in detector.detect(images.flatten(0, 1))))
        show(number + 1, len(material.sequences))
    return found


def choose(
    config: BootstrapConfig, detections: Sequence[tuple[Tensor, Tensor]], rig: Rig, subject: Subject, number: int
) -> tuple[list[tuple[int, int]], Tensor, dict[str, Any]]:
    """Frames to learn from, and their points (N, K, 3), from what was detected.

    :param config: of the run; with the method "random" nothing is checked, and frames are drawn.
    :param detections: of each sequence.
    :param rig: that they are triangulated with.
    :param subject: what is looked for.
    :param number: of the round, for what is drawn.
    """
    limits = None if subject.limits is None else torch.as_tensor(subject.limits)
    scores, verdicts, refused = [], [], {}
    for uv, confidence in detections:
        found: RobustPoints = triangulate_robustly(rig, uv, confidence, config.ransac, subject.groups)
        verdict: Verdict = judge(found, confidence, config.plausibility, subject.groups, subject.bones, limits)
        scores.append(score_frames(found, confidence, verdict.points))
        verdicts.append(verdict)
        for name, count in verdict.refused.items():
            refused[name] = refused.get(name, 0) + count
        if config.method == "random":
            verdicts[-1] = dataclasses.replace(verdict, points=found.points)
    accepted = [verdict.accepted for verdict in verdicts]
    if config.method == "random":
        generator = torch.Generator().manual_seed(1000 * config.seed + number)
        every = [(s, t) for s, verdict in enumerate(verdicts) for t in range(len(verdict.points))]
        order = torch.randperm(len(every), generator=generator)[: config.selection.frames].tolist()
        chosen = [every[at] for at in order]
    else:
        chosen = select_frames(scores, accepted, config.selection)
    points = torch.stack([verdicts[s].points[t] for s, t in chosen]) if chosen else torch.zeros(0, 0, 3)
    numbers = {"accepted": int(sum(int(ok.sum()) for ok in accepted)), "refused": refused}
    return chosen, points, numbers


def labels_of(
    config: BootstrapConfig,
    material: Material,
    chosen: Sequence[tuple[int, int]],
    points: Tensor,
    numbers: dict[str, Any],
) -> Labels:
    """Points of chosen frames, projected into all of their views, and how right these labels are."""
    hidden = torch.stack([torch.as_tensor(material.sequences[s].hidden[t]) for s, t in chosen])
    rig = to_rig(material.sequences[0].rig) if config.method == "oracle" else material.rig
    uv = reproject(rig, points, hidden)  # (N, V, K, 2)
    images = torch.stack([torch.as_tensor(material.sequences[s].images[t]) for s, t in chosen])
    true = torch.stack([truth(material.sequences[s])[t] for s, t in chosen])
    numbers = numbers | {
        "frames": len(chosen),
        "labels": int((~uv.isnan().any(-1)).sum()),
        "precision": label_precision(uv, true, config.image_size),
    }
    return Labels(LabelledImages(images.flatten(0, 1), uv.flatten(0, 1).float()), numbers)


def frames_to_label(config: BootstrapConfig, number: int) -> int:
    """Of how many frames a round of self-training labels images: as many as its reference chose, if it has one."""
    if config.reference is None:
        return config.selection.frames
    reference = BootstrapRun.open(config.reference)
    if reference.config.method != "bootstrapping" or number not in reference.finished_rounds():
        return config.selection.frames
    return len(reference.labels(number)[0])


def self_labels(detections: Sequence[tuple[Tensor, Tensor]], material: Material, frames: int, sure: float) -> Labels:
    """The surest images, as many as so many frames have, with their own detections as labels.

    :param detections: of each sequence, (T, V, K, 2) pixels and (T, V, K) confidences.
    :param material: what was filmed.
    :param frames: how many.
    :param sure: confidence from which a detection is a label.
    """
    uv = torch.cat([where.flatten(0, 1) for where, _ in detections])
    confidence = torch.cat([sure.flatten(0, 1) for _, sure in detections])
    images = torch.cat([torch.as_tensor(footage.images).flatten(0, 1) for footage in material.sequences])
    true = torch.cat([truth(footage).flatten(0, 1) for footage in material.sequences])
    views = material.rig.num_views
    best = confidence.mean(-1).topk(min(frames * views, len(uv))).indices
    labels = torch.where(confidence[best].unsqueeze(-1) >= sure, uv[best], torch.nan)
    numbers = {
        "frames": len(best) / views,
        "labels": int((~labels.isnan().any(-1)).sum()),
        "precision": label_precision(labels, true[best], images.shape[2]),
    }
    return Labels(LabelledImages(images[best], labels), numbers)
