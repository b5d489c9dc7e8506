"""The conditions of ``evaluate --ablate``: what the policy is shown in each, and that none of them cheats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.offpolicy import KeypointSACPolicy
from agents.policies import KeypointPolicy
from agents.scene import Scene
from envs.errors import UserError
from envs.registry import make
from experiments import evaluate as script
from experiments.judging.ablations import OTHER_SEED, SwappedViews, conditions
from experiments.judging.evaluation import evaluate
from kp3d_rl.keypoint3d import Keypoint3D, Keypoint3DConfig
from tests.dotworld import DotEnv, dot_scene
from tests.experiments.conftest import run_in


class Marked(gym.Env):
    """Its views, poses and ``proprio`` all hold (seed, moment); an episode of seed s lasts ``lengths[s]`` steps."""

    action_space = gym.spaces.Discrete(1)

    def __init__(self, lengths: dict[int, int]) -> None:
        self.lengths = lengths

    def reset(self, *, seed=None, options=None):
        self.mark = np.array([seed, 0])
        return self.observe(), {}

    def step(self, action):
        self.mark = self.mark + [0, 1]
        return self.observe(), 0.0, self.mark[1] >= self.lengths[self.mark[0]], False, {}

    def observe(self):
        return {"images": self.mark.copy(), "camera_poses": self.mark + 0.5, "proprio": self.mark.copy()}


def play_permuted(lengths: list[int], side_by_side: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(own, shown) as (seed, moment) of everything that a policy was shown."""
    envs = [Marked(dict(enumerate(lengths))) for _ in range(side_by_side)]
    shown = []

    def policy(batch):
        np.testing.assert_array_equal(batch["camera_poses"], batch["images"] + 0.5)  # poses go with their images
        pairs = zip(batch["proprio"].tolist(), batch["images"].tolist(), strict=True)
        shown.extend((tuple(own), tuple(seen)) for own, seen in pairs)
        return np.zeros(len(batch["proprio"]))

    with conditions(SpaceOf(envs[0]), True)["keypoints permuted across states"](None, envs) as (played, transform):
        evaluate(policy, played, range(len(lengths)), transform)
    return shown


class SpaceOf(gym.Wrapper):
    """Gives a fake what :func:`conditions` asks of an environment."""

    observation_space = gym.spaces.Dict({"images": gym.spaces.Box(0, 255, (2,))})
    rig = SimpleNamespace(names=("left", "right"))


@pytest.mark.parametrize("side_by_side", [1, 2, 3, 5])
@pytest.mark.parametrize("lengths", [[3, 3, 3, 3, 3], [1, 5, 2, 4, 3], [5, 1, 1, 1, 1], [1, 1, 4, 1, 1], [6]])
def test_permuted_views_are_of_another_episode_at_that_moment(lengths: list[int], side_by_side: int) -> None:
    shown = play_permuted(lengths, side_by_side)
    assert [own for own, _ in sorted(shown)] == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
    lengths = dict(enumerate(lengths)) | {OTHER_SEED: 1}  # of that one, only the beginning is known
    for (seed, moment), (other, of_other) in shown:
        assert other != seed
        assert of_other == min(moment, lengths[other] - 1)  # or its end, where it was shorter


def test_permuted_views_come_from_the_neighbour_while_there_is_one() -> None:
    shown = dict(play_permuted([2, 3, 3], 3))
    assert [shown[seed, 0][0] for seed in range(3)] == [2, 0, 1]
    assert [shown[seed, 2][0] for seed in (1, 2)] == [2, 1]
    alone = dict(play_permuted([2, 2, 2], 1))
    assert [alone[seed, 1] for seed in range(3)] == [(OTHER_SEED, 0), (0, 1), (1, 1)]


def test_what_is_remembered_cannot_change_afterwards() -> None:
    images = np.full((1, 2), 7)
    swap = SwappedViews(OTHER_SEED, {"images": images})
    images[:] = 0
    observation = {"images": np.full((1, 2), 1), "proprio": np.ones((1, 3))}
    shown = swap(observation, [0])
    assert shown["images"].tolist() == [[7, 7]] and shown["proprio"] is observation["proprio"]
    assert observation["images"].tolist() == [[1, 1]]
    observation["images"][:] = 0
    assert swap({"images": np.full((1, 2), 2)}, [1])["images"].tolist() == [[1, 1]]


def images_of(condition, policy, envs) -> np.ndarray:  # noqa: ANN001
    """The views of the first batch of a condition."""
    seen = []
    with condition(policy, envs) as (played, transform):
        evaluate(lambda o: seen.append(o) or np.zeros((len(o["images"]), 3)), played, range(len(envs)), transform)
    return seen[0]["images"]


def dot_conditions(ablate: bool = True) -> tuple[dict, list[DotEnv]]:
    envs = [DotEnv(), DotEnv()]
    return conditions(envs[0], ablate), envs


def test_names_and_order() -> None:
    found, _ = dot_conditions()
    cameras = [f"without camera camera{n}" for n in range(3)]
    assert list(found) == [
        "as trained",
        "blacked out",
        "keypoints permuted across states",
        *cameras,
        *(f"camera camera{n} moved" for n in range(3)),
        *(f"camera camera{n} moved, untold" for n in range(3)),
        *(f"camera camera{n} moved, outliers left out" for n in range(3)),
        "shuffled scene colours",
    ]
    assert list(dot_conditions(False)[0]) == ["as trained"]
    one = DotEnv(dot_scene(((1, 0, 0.4),)))
    assert not any("camera" in name for name in conditions(one, True))


def test_views_are_blacked_out_all_or_one() -> None:
    found, envs = dot_conditions()
    whole = images_of(found["as trained"], None, envs)
    assert whole.min() > 0
    assert images_of(found["blacked out"], None, envs).max() == 0
    for view in range(3):
        shown = images_of(found[f"without camera camera{view}"], None, envs)
        assert shown[:, view].max() == 0
        others = [n for n in range(3) if n != view]
        np.testing.assert_array_equal(shown[:, others], whole[:, others])
    np.testing.assert_array_equal(images_of(found["keypoints permuted across states"], None, envs), whole[::-1])


def test_a_missing_camera_is_left_out_of_the_fusion_of_keypoint_policies_alone() -> None:
    scene = dot_scene()
    encoder = Keypoint3D(Keypoint3DConfig(keypoints=2, width=4), scene.rig, scene.workspace)
    found, envs = dot_conditions()
    present = []

    def condition_of(policy):  # noqa: ANN001, ANN202
        with found["without camera camera1"](policy, envs):
            present.append(encoder.present.tolist())

    condition_of(SimpleNamespace(features_extractor=SimpleNamespace(encoder=encoder)))
    condition_of(SimpleNamespace(features_extractor=SimpleNamespace(encoder=torch.nn.Linear(1, 1))))  # a baseline
    condition_of(SimpleNamespace(features_extractor=torch.nn.Linear(1, 1)))
    assert present == [[True, False, True], [True] * 3, [True] * 3] and encoder.present.all()
    with pytest.raises(RuntimeError), found["without camera camera0"](None, envs):
        raise RuntimeError


@pytest.mark.parametrize("policy_class", [KeypointPolicy, KeypointSACPolicy])
def test_leaving_a_camera_out_reaches_what_the_policy_does(policy_class: type) -> None:
    torch.manual_seed(0)
    env = DotEnv()
    config = Keypoint3DConfig(keypoints=2, width=4, decoder_width=8)
    policy = policy_class(env.observation_space, env.action_space, lambda _: 1e-3, scene=Scene.of(env), encoder=config)
    policy.set_training_mode(False)
    observation = {key: value[None] for key, value in env.reset(seed=0)[0].items()}

    def act(shown):  # noqa: ANN001, ANN202
        return policy.predict(shown, deterministic=True)[0]

    with conditions(env, True)["without camera camera2"](policy, [env]) as (_, transform):
        shown = transform(observation, [0])
        without = act(shown)
    assert not np.array_equal(without, act(shown))  # the black view counts again
    assert not np.array_equal(without, act(observation))


@pytest.mark.parametrize("policy_class", [KeypointPolicy, KeypointSACPolicy])
def test_a_policy_that_is_told_where_a_camera_stands_acts_as_one_that_was_made_for_that_place(policy_class) -> None:
    envs = [make("reach-multiview", height=32, width=32) for _ in range(2)]
    config = Keypoint3DConfig(keypoints=2, width=4, decoder_width=8, precision="float32")
    spaces = envs[0].observation_space, envs[0].action_space, lambda _: 1e-3
    torch.manual_seed(0)
    policy = policy_class(*spaces, scene=Scene.of(envs[0]), encoder=config)
    policy.set_training_mode(False)
    seen = []

    def act(observation):  # noqa: ANN001, ANN202
        seen.append(observation)
        return policy.predict(observation, deterministic=True)[0]

    found = conditions(envs[0], True)
    with found["camera right moved"](policy, envs) as (played, transform):
        evaluate(act, played, [11, 12, 13], transform)
        alone = seen[-1]  # of seed 13, in the first environment
        there = Scene.of(played[0])
    np.testing.assert_allclose(alone["camera_poses"][0], there.cameras.world_from_camera, atol=1e-6)
    assert not np.allclose(there.cameras.world_from_camera[1], policy._scene.cameras.world_from_camera[1], atol=0.05)
    torch.manual_seed(0)
    made_there = policy_class(*spaces, scene=there, encoder=config)
    made_there.set_training_mode(False)
    views = {key: value for key, value in alone.items() if key != "camera_poses"}
    told, untold = act(alone), act(views)
    np.testing.assert_allclose(told, made_there.predict(views, deterministic=True)[0], atol=1e-6)
    assert not np.allclose(told, untold, atol=1e-6)
    with found["camera right moved, untold"](policy, envs) as (played, transform):
        assert transform is None and "camera_poses" not in played[0].reset(seed=11)[0]
    rested = envs[1].reset(seed=11)[0]["images"]
    np.testing.assert_array_equal(rested, envs[0].reset(seed=11)[0]["images"])
    for env in envs:
        env.close()


def test_shuffled_colours_are_restored_even_after_a_failure() -> None:
    env = make("reach-multiview", height=16, width=16)
    own = env.unwrapped.model.mat_rgba.copy()
    condition = conditions(env, True)["shuffled scene colours"]
    with pytest.raises(RuntimeError), condition(None, [env]) as ((played,), transform):
        played.reset(seed=0)
        assert transform is None and np.abs(env.unwrapped.model.mat_rgba - own).max() > 0.1
        raise RuntimeError
    np.testing.assert_array_equal(env.unwrapped.model.mat_rgba, own)
    env.close()


def test_runs_on_state_are_refused() -> None:
    env = make("reach-multiview", observe=("state",))
    assert list(conditions(env, False)) == ["as trained"]
    with pytest.raises(UserError, match="acts on the simulator's state"):
        conditions(env, True)


def test_every_condition_is_measured_on_the_same_seeds(
    tiny_run: Path, workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    """End to end: the table, the file, and that each condition made the policy act differently."""
    arguments = ["--run", str(tiny_run), "--episodes", "3", "--envs", "2", "--ablate"]
    run_in(workplace, script.main, arguments)
    results = json.loads((tiny_run / "eval.json").read_text())["results"]
    names = ("left", "right", "front")
    cameras = [f"without camera {name}" for name in names]
    cameras += [f"camera {name} moved{told}" for told in ("", ", untold", ", outliers left out") for name in names]
    expected = ["as trained", "blacked out", "keypoints permuted across states", *cameras, "shuffled scene colours"]
    assert list(results) == expected
    shown = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(shown) if line.split() == "success_at_end 95 % interval return".split())
    for line, name in zip(shown[start + 1 :], expected, strict=False):
        summary = results[name]["summary"]
        assert line.startswith(f"{name} ") and f" {summary['success_at_end']['k']}/3 = " in line
        assert line.endswith(f" {summary['return']['mean']:.2f}")
    episodes = {name: result["episodes"] for name, result in results.items()}
    seeds = [episode["seed"] for episode in episodes["as trained"]]
    for name, played in episodes.items():
        assert [episode["seed"] for episode in played] == seeds
        returns = [episode["episode_return"] for episode in played]
        assert name == "as trained" or returns != [episode["episode_return"] for episode in episodes["as trained"]]
    run_in(workplace, script.main, arguments)
    assert json.loads((tiny_run / "eval.json").read_text())["results"] == results  # deterministic, all of it


def test_outliers_are_left_out_of_keypoint_policies_inside_the_condition_alone() -> None:
    scene = dot_scene()
    encoder = Keypoint3D(Keypoint3DConfig(keypoints=2, width=4), scene.rig, scene.workspace)
    policy = SimpleNamespace(features_extractor=SimpleNamespace(encoder=encoder))
    env = make("reach-multiview", height=32, width=32)
    condition = conditions(env, True)["camera left moved, outliers left out"]
    images = torch.as_tensor(env.reset(seed=0)[0]["images"])[None]
    plain = encoder(images).points
    with condition(policy, [env]):
        assert encoder.tolerance > 0 and not torch.equal(encoder(images).points, plain), (
            "an untrained one contradicts itself"
        )
    assert encoder.tolerance == 0 and torch.equal(encoder(images).points, plain)
    with condition(SimpleNamespace(), [env]):
        pass  # a baseline has nothing to leave out
    with pytest.raises(ValueError, match="tolerance must be positive"), encoder.rejecting(0.0):
        pass
    env.close()
