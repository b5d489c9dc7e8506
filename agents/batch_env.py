"""Environments whose views are rendered together: N worlds, all cameras, one launch of the ray tracer.

Physics runs in MuJoCo, one world after the other; rendering is what takes the time. On a GPU the images never leave it
before the encoder has seen them: they are handed out as torch tensors, and the buffers that go with them
(:class:`agents.buffers.DeviceRolloutBuffer`, :class:`agents.replay.FrameReplayBuffer`) keep them there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from envs import snapshots
from envs.errors import UserError
from envs.multiview import MultiViewObservation
from envs.renderers import make_renderer


class BatchVecEnv(VecEnv):
    """Environments in one process that share one renderer call for each step.

    :param constructors: of :class:`~envs.multiview.MultiViewObservation` environments of one kind that observe images.
    :param backend: "warp" traces all worlds in one launch; "gl" draws them one after the other.
    :param device: where the ray tracer works: "cpu", "cuda" or "cuda:<n>".
    :param tensors: hand out images as torch tensors on that device, terminal observations too, instead of arrays.
    :param threads: on a CPU, threads that trace.
    :raises UserError: for environments of another kind.
    """

    def __init__(
        self,
        constructors: Sequence[Callable[[], gym.Env]],
        backend: str = "warp",
        device: str = "cpu",
        tensors: bool = False,
        threads: int = 1,
    ) -> None:
        self.envs = [make() for make in constructors]
        for env in self.envs:
            if not isinstance(env, MultiViewObservation) or "images" not in env.observation_space.spaces:
                raise UserError(f"only environments that observe images can be rendered together, not {env}")
            env.images_are_deferred = True
        super().__init__(len(self.envs), self.envs[0].observation_space, self.envs[0].action_space)
        self.device, self.tensors = device, tensors
        self.renderer = make_renderer(backend, device, threads)
        _, self.height, self.width, _ = self.observation_space["images"].shape
        self._actions = np.zeros(0)

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        found = []
        for row, env in enumerate(self.envs):
            options = {"options": self._options[row]} if self._options[row] else {}
            observation, self.reset_infos[row] = env.reset(seed=self._seeds[row], **options)
            found.append(observation)
        self._reset_seeds()
        self._reset_options()
        return self._with_images(found, begun=range(self.num_envs))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all worlds, then render them together; twice where episodes ended, whose last views are needed too."""
        steps = [env.step(action) for env, action in zip(self.envs, self._actions, strict=True)]
        found, rewards, terminated, truncated, infos = (list(part) for part in zip(*steps, strict=True))
        ended = np.logical_or(terminated, truncated)
        for row, info in enumerate(infos):
            infos[row] = info | {"TimeLimit.truncated": bool(truncated[row] and not terminated[row])}
        observations = self._with_images(found)
        if ended.any():
            for row in np.flatnonzero(ended):
                last = {key: _copied(values[row]) for key, values in observations.items()}
                infos[row]["terminal_observation"] = last
                found[row], self.reset_infos[row] = self.envs[row].reset()
            observations = self._with_images(found, begun=np.flatnonzero(ended), again=True)
        return observations, np.array(rewards, np.float32), ended, deepcopy(infos)

    def save_states(self) -> list[dict[str, Any]]:
        """The states of all environments, each as "state"; no episode is ever "lost" here."""
        return [{"state": snapshots.save(env, row), "lost": None} for row, env in enumerate(self.envs)]

    def load_states(self, states: Sequence[dict[str, Any]]) -> tuple[VecEnvObs, list[str | None]]:
        """Put all environments into states; returns observations, and why new episodes were begun."""
        loaded = [snapshots.load(env, row, states[row]["state"]) for row, env in enumerate(self.envs)]
        return self._with_images([observation for observation, _ in loaded]), [reason for _, reason in loaded]

    def close(self) -> None:
        """Free renderer and environments. Idempotent."""
        self.renderer.close()
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of some environments."""
        return [env.get_wrapper_attr(attr_name) for env in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some environments."""
        for env in self._chosen(indices):
            env.set_wrapper_attr(attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of some environments."""
        return [env.get_wrapper_attr(method_name)(*method_args, **method_kwargs) for env in self._chosen(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """A picture of each environment, for videos."""
        return [env.render() for env in self.envs]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether environments are wrapped in a class."""
        from stable_baselines3.common.env_util import is_wrapped

        return [is_wrapped(env, wrapper_class) for env in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> list[gym.Env]:
        return [self.envs[row] for row in self._get_indices(indices)]

    def _with_images(
        self, observations: Sequence[dict[str, np.ndarray]], begun: Sequence[int] = (), again: bool = False
    ) -> dict[str, Any]:
        """Stack what the environments say and add the views of their present states.

        :param observations: one of each environment.
        :param begun: which of them begin an episode.
        :param again: whether the others were asked for at this very moment already.
        """
        found = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        visuals = [env.synced_visual() for env in self.envs]
        images = self._render(visuals)
        if self.envs[0].history is None:
            return found | {"images": images}
        for row, env in enumerate(self.envs):
            if row in begun:
                env.history.begin(images[row])
            elif not again:
                env.history.add(images[row])
        return found | {"images": images, "previous": self._previous()}

    def _previous(self) -> np.ndarray | torch.Tensor:
        """(N, S - 1, V, height, width, 3) uint8; frames that were loaded are not on the device yet."""
        frames = [[frame for frame in env.history.previous] for env in self.envs]
        if not self.tensors:
            return np.stack([np.stack(earlier) for earlier in frames])
        device = self.device
        return torch.stack([torch.stack([torch.as_tensor(f, device=device) for f in earlier]) for earlier in frames])

    def _render(self, visuals: Sequence[Any]) -> np.ndarray | torch.Tensor:
        if not self.tensors:
            return self.renderer.render_many(visuals, self.height, self.width)
        if not hasattr(self.renderer, "trace"):
            return torch.as_tensor(self.renderer.render_many(visuals, self.height, self.width)).to(self.device)
        return torch.cat([unpacked(scene) for scene in self.renderer.trace(visuals, self.height, self.width)])


def renders_on_device(env: VecEnv) -> bool:
    """Whether an environment hands out its views as tensors.

    :param env: wrapped or not.
    """
    inner = env.unwrapped
    return isinstance(inner, BatchVecEnv) and inner.tensors


def unpacked(scene: Any) -> torch.Tensor:
    """Views that were traced, (N, V, height, width, 3) uint8 on the device where they were traced.

    :param scene: what :meth:`envs.renderers.warp.WarpRenderer.trace` gave.
    """
    packed = torch.from_dlpack(scene.packed()).view(torch.int32).view(scene.shape)
    return torch.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], dim=-1).to(torch.uint8)


def _copied(values: Any) -> Any:
    return values.clone() if isinstance(values, torch.Tensor) else np.array(values)
