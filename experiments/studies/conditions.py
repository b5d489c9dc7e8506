"""Which conditions are compared with each other, and where: what ``python -m experiments.study`` runs by name."""

from __future__ import annotations

from dataclasses import dataclass

NO_AUXILIARY = (
    "--auxiliary.no-joint --auxiliary.warmup-frames 0 --auxiliary.warmup-steps 0 --auxiliary.steps-per-rollout 0 "
    "--auxiliary.policy-gradient 1"
)


@dataclass(frozen=True)
class Condition:
    """One way to train.

    :param name: in tables and run folders.
    :param arguments: of the training, beside environment, run and seed.
    :param seeds: how many, from 0 on.
    :param program: "train" or "pretrain".
    :param ablate: evaluate also on changed observations.
    :param probe: judge the keypoints.
    :param cores: that a run computes and renders on; 0 is all of them, for runs one at a time (``--jobs 1``).
    :param env: where, if not where the study is.
    :param asked: further arguments of the probe.
    """

    name: str
    arguments: str = ""
    seeds: int = 5
    program: str = "train"
    ablate: bool = False
    probe: bool = False
    cores: int = 1
    env: str | None = None
    asked: str = ""


@dataclass(frozen=True)
class Study:
    """What is compared.

    :param env: where, of all conditions that do not say otherwise.
    :param conditions: the first one is what the others are compared with.
    """

    env: str
    conditions: tuple[Condition, ...]


SHORT = "--steps 1000"
KEYPOINT_SAC = " --auxiliary.warmup-frames 1024 --auxiliary.warmup-steps 750"
"""SAC plays so many steps at random anyhow: they train the keypoints, too. Each action of the warm-up is held for some
steps, so that the hand gets about; without a warm-up (DrQ-v2) there is a new one in every step."""
WITHOUT = {
    "no policy gradient": "--auxiliary.policy-gradient 0",
    "no multi-view loss": "--encoder.loss.multiview 0",
    "no separation loss": "--encoder.loss.separation 0",
}
"""Keypoint3D with one ingredient off each, beside the auxiliary loss as a whole."""
LIKE_KEYPOINTS = "--auxiliary.policy-gradient 0.1"
"""By default the policy's whole gradient reaches an autoencoder, and a tenth of it keypoints."""
AUTOENCODER_SEEDS = 3
"""So many seeds of a study's first condition are compared with an autoencoder."""


def control(
    steps: int, episodes: int, sac: str = "", broad: bool = False, keypoints: str = "ppo"
) -> tuple[Condition, ...]:
    """Keypoints against what others would do, at equal steps, with an evaluation after every 5 % of them.

    :param steps: of the environment.
    :param episodes: of each evaluation.
    :param sac: options of what is trained by SAC.
    :param broad: whether one seed of each of the other baselines, and of Keypoint3D without one of its ingredients,
        is to say that they learn, and the keypoints be judged on changed observations too, which takes as long as
        training.
    :param keypoints: the algorithm that Keypoint3D comes first with; PPO, which RAD has, is always there.
    """
    common = f"--total-steps {steps} --log.evaluate-every {steps // 20} --log.evaluation-episodes {episodes}"
    fast = f"--preset fast {common}"
    more = (
        Condition("2D keypoints", f"{fast} --encoder.kind keypoint2d", seeds=1),
        Condition("autoencoder", f"{fast} --encoder.kind autoencoder {LIKE_KEYPOINTS}", seeds=1),
        Condition("CURL", f"{common} --algorithm sac --encoder.kind curl{KEYPOINT_SAC}{sac}", seeds=1),
        *(Condition(name, f"{fast} {off}", seeds=1) for name, off in WITHOUT.items()),
    )
    by_sac = Condition("Keypoint3D SAC", f"{fast} --algorithm sac{KEYPOINT_SAC}{sac}")
    return (
        *([by_sac] if keypoints == "sac" else []),
        Condition("Keypoint3D", fast, ablate=broad),
        Condition("no auxiliary loss", f"{fast} {NO_AUXILIARY}"),
        Condition("RAD", f"{fast} --encoder.kind rad"),
        Condition("DrQ-v2 style", f"{common} --algorithm sac --encoder.kind drqv2{sac}"),
        Condition("state", f"{fast} --encoder.kind state", seeds=1),
        *(more if broad else ()),
    )


def pretrained_on(env: str) -> Condition:
    """Keypoints alone, from episodes of which half are played by the task's script; they are judged on such, too.

    :param env: where.
    """
    # What the preset has, once more: the numbers from before it had that are of another command.
    turning = " --encoder.loss.equivariance 100" if env == "push-multiview" else ""
    options = f"--preset fast --policy mixed{turning}"
    return Condition(env, options, 1, "pretrain", probe=True, env=env, asked="--policy mixed")


TASKS_WITH_OBJECTS = (
    "metaworld-hammer",
    "metaworld-pick-place",
    "metaworld-window-open",
    "push-multiview",
    "lift-multiview",
)

STUDIES = {
    "learning": Study(
        "reach-multiview",
        (
            Condition("default", ablate=True, probe=True),
            Condition("no auxiliary loss", NO_AUXILIARY, probe=True),
            Condition("no policy gradient", "--auxiliary.policy-gradient 0", probe=True),
            Condition("pixels", "--encoder.kind pixels"),
            Condition("SAC", "--algorithm sac", seeds=3, probe=True),
            Condition("state", "--encoder.kind state", seeds=3),
        ),
    ),
    "representation": Study(
        "reach-multiview",
        (
            Condition("default", SHORT, 3, "pretrain", probe=True),
            Condition("no coverage", f"{SHORT} --encoder.loss.coverage 0", 3, "pretrain", probe=True),
            Condition("no variance", f"{SHORT} --encoder.loss.variance 0", 3, "pretrain", probe=True),
            Condition("no multi-view", f"{SHORT} --encoder.loss.multiview 0", 3, "pretrain", probe=True),
            Condition("no separation", f"{SHORT} --encoder.loss.separation 0", 3, "pretrain", probe=True),
            Condition("not standardised", f"{SHORT} --encoder.no-standardise", 3, "pretrain", probe=True),
            Condition("all pixels alike", f"{SHORT} --encoder.no-weigh-pixels", 3, "pretrain", probe=True),
            Condition("no view on its own", f"{SHORT} --encoder.own-view 0", 3, "pretrain", probe=True),
            Condition("depth from own view", f"{SHORT} --encoder.depth attended", 3, "pretrain", probe=True),
            Condition("depth from a map", f"{SHORT} --encoder.depth map", 3, "pretrain", probe=True),
            Condition("fused as a plain mean", f"{SHORT} --encoder.depth-trust 1", 3, "pretrain", probe=True),
            Condition("multi-view at once", f"{SHORT} --encoder.multiview-rise 0", 3, "pretrain", probe=True),
            Condition("8 keypoints", f"{SHORT} --encoder.keypoints 8", 3, "pretrain", probe=True),
        ),
    ),
    "control-reach": Study("reach-multiview", control(20_000, episodes=20, broad=True)),
    "control-window-open": Study(
        "metaworld-window-open",
        control(
            10_000, episodes=10, sac=" --action-repeat 4 --sac.gamma 0.95 --sac.reward-scale 0.025", keypoints="sac"
        ),
    ),
    "pretraining": Study("push-multiview", tuple(map(pretrained_on, TASKS_WITH_OBJECTS))),
    "speed": Study("reach-multiview", (Condition("default on all cores", seeds=3, cores=0),)),
    "redrawn": Study(
        "reach-multiview",
        (
            Condition("the task's own scene", "", 3, "pretrain", probe=True),
            *(Condition(f"redraw {n}", f"--redraw {n}", 1, "pretrain", probe=True) for n in (1, 2, 3)),
        ),
    ),
}
