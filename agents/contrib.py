"""The same policies for algorithms of sb3-contrib, which is an extra (``pip install kp3d_rl[contrib]``)."""

from __future__ import annotations

from typing import Any

from sb3_contrib.tqc.policies import MultiInputPolicy

from agents.baselines import PixelExtractor
from agents.offpolicy import OffPolicyAuxiliary, OneEncoder


class AuxiliaryTQCPolicy(OffPolicyAuxiliary, MultiInputPolicy):
    """TQC on an encoder with a loss of its own."""


class KeypointTQCPolicy(AuxiliaryTQCPolicy):
    """TQC on keypoints."""


class PixelTQCPolicy(OneEncoder, MultiInputPolicy):
    """TQC on :class:`~agents.baselines.PixelExtractor` or its kin, trained by the critic alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", PixelExtractor)
        super().__init__(*args, **kwargs)
