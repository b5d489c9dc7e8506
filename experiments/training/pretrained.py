"""Keypoints of an earlier run as the start of a training."""

from __future__ import annotations

import dataclasses

import torch

from agents.scene import Scene
from envs.errors import UserError
from experiments.options.config import RunConfig
from experiments.runs import Run
from kp3d_rl.keypoint3d import Keypoint3DConfig

PARTS = ("features_extractor.", "decoder.")
"""What is taken over: encoder and decoder have these names in every policy on keypoints."""

OF_THE_SCENE = "decoder.background"
"""Not learnt but rendered, so it stays the new run's: its scene may have other colours."""

TRAINING_ONLY = {
    "noise", "decoded_views", "weigh_pixels", "weigh_coverage", "outside", "own_view", "random_shift", "precision",
    "multiview_rise", "loss",
}  # fmt: skip
"""Options of the encoder that say how it is trained, not what it is: they may differ from the earlier run's."""


def load_pretrained(policy: torch.nn.Module, config: RunConfig, scene: Scene) -> None:
    """Overwrite encoder and decoder of a policy that is built, so that no initialisation touches them again.

    :param policy: on keypoints.
    :param config: of the new run; its ``pretrained`` names the earlier one.
    :param scene: the new run's cameras.
    :raises UserError: where the earlier run has another rig, image size, workspace or K; both values are named.
    """
    run = Run.open(config.pretrained, kind=RunConfig, makes_envs=False)
    require_same_encoder(run, config)
    differences = run.scene().differences(scene)
    if differences:
        whose = "this environment" if run.config.env == config.env else f"{config.env}; it is of {run.config.env}"
        raise UserError(f"pretrained run {run.path} has {differences[0]} in {whose}")
    checkpoint = run.load()
    taken = (name for name in checkpoint.policy if name.startswith(PARTS) and name != OF_THE_SCENE)
    weights = {name: checkpoint.policy[name] for name in taken}
    try:
        missing, unexpected = policy.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"pretrained run {run.path} does not fit its config.yaml: {reason}") from None
    lacking = [name for name in missing if name.startswith(PARTS) and name != OF_THE_SCENE]
    if lacking or unexpected:
        raise UserError(f"pretrained run {run.path} does not fit its config.yaml: '{(lacking + unexpected)[0]}'")
    policy.auxiliary.calls = config.encoder.multiview_rise  # that schedule is behind these keypoints


def require_same_encoder(run: Run, config: RunConfig) -> None:
    """Refuse an earlier run whose encoder is another one.

    :param run: the earlier run.
    :param config: of the new one.
    :raises UserError: naming the first option that differs, with both values.
    """
    earlier = run.config.encoder
    if not earlier.finds_keypoints:
        raise UserError(f"pretrained run {run.path} acts on '{earlier.kind}', it has no keypoints")
    for field in dataclasses.fields(Keypoint3DConfig):
        theirs, ours = getattr(earlier, field.name), getattr(config.encoder, field.name)
        if field.name not in TRAINING_ONLY and theirs != ours:
            raise UserError(f"pretrained run {run.path} has encoder {field.name} {theirs}, this one asks for {ours}")
