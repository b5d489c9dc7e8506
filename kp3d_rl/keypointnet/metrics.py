"""What keypoints of single images are worth: the rotation between two views, and whether both views mean one point.

Source: Suwajanakorn et al. (NeurIPS 2018), section 5: the angle between estimated and true relative rotation, and
the distance between both views' keypoints (3D-SE) over pairs that are not off by more than a right angle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kp3d_rl.geometry import align, rotation_angle
from kp3d_rl.keypointnet.losses import axis_tips
from kp3d_rl.keypointnet.network import KeypointNet, faces_right
from kp3d_rl.keypointnet.training import ViewsOfObjects, points_of

FLIPPED = 90.0
"""Degrees from which on a rotation is not just inexact, but wrong."""


@dataclass(frozen=True)
class PairJudgement:
    """Keypoints of pairs of views.

    :param angles: (P,) degrees between estimated and true rotation.
    :param apart: (P,) distance of the two views' keypoints from each other, object units, the mean over keypoints.
    :param spread: (P,) root mean square distance of a view's keypoints from their middle, object units.
    :param facing: share of the images whose facing is told right.
    """

    angles: Tensor
    apart: Tensor
    spread: Tensor
    facing: float

    def summary(self) -> dict[str, float]:
        """The numbers of the paper's Table 1, and the share of wrong rotations."""
        right = self.angles < FLIPPED
        return {
            "mean_angle": float(self.angles.mean()),
            "median_angle": float(self.angles.median()),
            "flipped": float((~right).double().mean()),
            "apart": float(self.apart[right].mean()) if right.any() else float("nan"),
            "spread": float(self.spread.mean()),
            "facing": self.facing,
        }


def judge_pairs(network: KeypointNet, data: ViewsOfObjects) -> PairJudgement:
    """Views 0 and 1, 2 and 3 and so on of every object, each image by itself.

    :param network: to be judged.
    :param data: objects; nothing but their images is shown to the network.
    """
    pairs = data.images.shape[1] // 2
    objects = torch.arange(len(data)).repeat_interleave(pairs)
    views = torch.arange(2 * pairs).view(pairs, 2).repeat(len(data), 1)
    rig = data.rig(objects, views)
    found, right = network.detect(data.images[:, : 2 * pairs].flatten(0, 1))
    points = points_of(found.on("cpu"), rig, data.distance)
    rotation = align(points[:, 0], points[:, 1])[0]
    angle = rotation_angle(rotation, torch.eye(3).expand_as(rotation))
    spread = (points - points.mean(-2, keepdim=True)).square().sum(-1).mean(-1).sqrt().mean(-1)
    facing = (right.cpu() == faces_right(axis_tips(rig)).flatten()).double().mean()
    apart = (points[:, 0] - points[:, 1]).norm(dim=-1).mean(-1)
    return PairJudgement(torch.rad2deg(angle), apart, spread, float(facing))
