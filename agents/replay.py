"""A replay buffer for views: each frame is kept once, and its size is known before it is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from agents.buffers import Frames, Stream
from agents.memory import available_memory
from envs.errors import UserError

GIGABYTE = 1e9


def replay_bytes(observation_space: spaces.Dict, action_space: spaces.Space, buffer_size: int, n_envs: int = 1) -> int:
    """Memory that a :class:`FrameReplayBuffer` takes.

    :param observation_space, action_space, buffer_size, n_envs: as the buffer's own.
    :return: bytes.
    """
    steps = max(buffer_size // n_envs, 1)
    shapes = get_obs_shape(observation_space)
    frame = sum(int(np.prod(shapes[key])) * space.dtype.itemsize for key, space in observation_space.spaces.items())
    action = get_action_dim(action_space) * np.dtype(ReplayBuffer._maybe_cast_dtype(action_space.dtype)).itemsize
    numbers = 3 * 4 + 2 * 8  # reward, done, timeout; two frame numbers
    return n_envs * ((steps + 1) * frame + steps * (action + numbers))


def require_replay_fits(
    observation_space: spaces.Dict,
    action_space: spaces.Space,
    buffer_size: int,
    n_envs: int = 1,
    device: torch.device | str = "cpu",
) -> None:
    """Refuse a replay that is larger than the free memory.

    :param observation_space, action_space, buffer_size, n_envs: as the buffer's own.
    :param device: whose memory is asked for.
    :raises UserError: naming what it needs, what is free and how many transitions would fit.
    """
    needed, free = replay_bytes(observation_space, action_space, buffer_size, n_envs), _free(device)
    if free is None or needed <= free:
        return
    least = replay_bytes(observation_space, action_space, n_envs, n_envs)
    step = replay_bytes(observation_space, action_space, 2 * n_envs, n_envs) - least
    fitting = max(0, (free - least) // step + 1) * n_envs
    raise UserError(
        f"a replay of {buffer_size} transitions needs {needed / GIGABYTE:.2f} GB of memory, "
        f"{free / GIGABYTE:.2f} GB are free: at most {fitting} transitions fit"
    )


def _free(device: torch.device | str) -> int | None:
    """Bytes that are free where the frames are to lie."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


class FrameReplayBuffer(ReplayBuffer):
    """SB3's replay buffer for Dict observations with every frame stored once; for ``replay_buffer_class=``.

    Every environment has a ring of frames, and a transition holds the numbers of its two frames there. The next
    observation of one step is the observation of the following one unless an episode ended, where the terminal
    observation is a frame more; so each ring has one frame more than transitions, and a transition whose first frame
    was overwritten is no longer drawn. Short episodes (of L steps) thus make the buffer a little smaller, by a factor
    L / (L + 1). Whether two frames are the same is told by their content: whatever happens between two calls of
    :meth:`add`, what is drawn is what was stored.

    :param buffer_size: transitions to keep, over all environments.
    :param observation_space: Dict; each entry keeps its own type.
    :param action_space: any that SB3 can store.
    :param device: where samples go.
    :param n_envs: environments that step side by side.
    :param optimize_memory_usage: must be False; that is SB3's own way, which knows no Dict.
    :param handle_timeout_termination: an episode that only ran out of time is not ``done``.
    :param on_device: entries whose frames are kept on ``device``, where the environment should hand them out.
    :param reward_scale: what rewards are multiplied by when they are drawn; they are kept as they came.
    :raises UserError: where it does not fit into the free memory.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        on_device: tuple[str, ...] = (),
        reward_scale: float = 1.0,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(f"FrameReplayBuffer stores Dict observations, got {observation_space}")
        if optimize_memory_usage:
            raise ValueError("FrameReplayBuffer keeps each frame once by itself: leave optimize_memory_usage False")
        where = get_device(device) if on_device else "cpu"
        require_replay_fits(observation_space, action_space, buffer_size, n_envs, where)
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination, self.reward_scale = handle_timeout_termination, reward_scale
        self._allocate(on_device)
        self.reset()

    def _allocate(self, on_device: tuple[str, ...]) -> None:
        steps, envs = self.buffer_size, self.n_envs
        self.frames = {
            key: np.zeros((envs, steps + 1, *shape), self.observation_space[key].dtype)
            for key, shape in self.obs_shape.items()
            if key not in on_device
        }
        for key in on_device:
            kind = getattr(torch, str(self.observation_space[key].dtype))
            self.frames[key] = torch.zeros((envs, steps + 1, *self.obs_shape[key]), dtype=kind, device=self.device)
        self.actions = np.zeros((steps, envs, self.action_dim), self._maybe_cast_dtype(self.action_space.dtype))
        self.rewards, self.dones, self.timeouts = (np.zeros((steps, envs), np.float32) for _ in range(3))
        self.first, self.second = (np.zeros((steps, envs), np.int64) for _ in range(2))

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        super().reset()
        self.added = 0
        self.oldest = np.zeros(self.n_envs, np.int64)
        self.frame_counts = np.zeros(self.n_envs, np.int64)

    @property
    def counts(self) -> np.ndarray:
        """(n_envs,) how many transitions of each environment can be drawn."""
        return self.added - self.oldest

    def size(self) -> int:
        """Transitions per environment that can be drawn, of the environment that has fewest."""
        return int(self.counts.min())

    def add(
        self,
        obs: Frames,
        next_obs: Frames,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of every environment; copies what it is given.

        :param obs, next_obs: arrays (n_envs, ...); at an episode's end ``next_obs`` is the terminal observation.
        :param action: (n_envs, A).
        :param reward, done: (n_envs,).
        :param infos: one per environment.
        """
        steps, everyone = self.buffer_size, np.arange(self.n_envs)
        obs, next_obs = self._shaped(obs), self._shaped(next_obs)
        self._store(obs, np.flatnonzero([not self._is_last_frame(obs, env) for env in everyone]))
        row = self.added % steps
        self.first[row] = self.frame_counts - 1
        self._store(next_obs, everyone)
        self.second[row] = self.frame_counts - 1
        self.actions[row] = np.reshape(action, (self.n_envs, self.action_dim))
        self.rewards[row], self.dones[row] = reward, done
        if self.handle_timeout_termination:
            self.timeouts[row] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.added += 1
        self.pos, self.full = self.added % steps, self.added >= steps
        self.oldest = np.maximum(self.oldest, self.added - steps)
        while (gone := self.first[self.oldest % steps, everyone] < self.frame_counts - (steps + 1)).any():
            self.oldest += gone

    def streams(self) -> list[Stream]:
        """The transitions, and each environment's frames, to be written down."""
        transitions = {
            "actions": self.actions, "rewards": self.rewards, "dones": self.dones, "timeouts": self.timeouts,
            "first": self.first, "second": self.second,
        }  # fmt: skip
        frames = [
            Stream(f"replay-{env}", int(count), {key: ring[env] for key, ring in self.frames.items()})
            for env, count in enumerate(self.frame_counts)
        ]
        return [Stream("transitions", self.added, transitions), *frames]

    def state(self) -> dict[str, Any]:
        """Where the rings stand: plain values and arrays."""
        return {"added": self.added, "oldest": self.oldest.copy(), "frame_counts": self.frame_counts.copy()}

    def expect(self, state: dict[str, Any]) -> list[Stream]:
        """Stand where another buffer stood; who asks must put its items into the streams that are returned.

        :param state: what :meth:`state` gave.
        :raises ValueError: where a buffer of this size cannot stand there.
        """
        added, oldest, counts = state["added"], state["oldest"], state["frame_counts"]
        fits = 0 <= added < 1 << 62 and (oldest >= max(0, added - self.buffer_size)).all() and (oldest <= added).all()
        if not fits or (counts < 0).any() or (counts < added - oldest).any() or (counts > 2 * added).any():
            raise ValueError(f"a replay of {self.buffer_size} steps cannot have {added} of them, the oldest {oldest}")
        self.added, self.oldest, self.frame_counts = added, oldest.copy(), counts.copy()
        self.pos, self.full = added % self.buffer_size, added >= self.buffer_size
        return self.streams()

    def require_whole(self) -> None:
        """Refuse transitions whose frames are not there, after items were put into the streams.

        :raises ValueError: naming the first.
        """
        for env in range(self.n_envs):
            rows = np.arange(self.oldest[env], self.added) % self.buffer_size
            for numbers in (self.first[rows, env], self.second[rows, env]):
                least, most = self.frame_counts[env] - (self.buffer_size + 1), self.frame_counts[env]
                if ((numbers < max(0, least)) | (numbers >= most)).any():
                    raise ValueError(f"the replay of environment {env} has transitions without frames")

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:
        """Draw transitions with replacement, every one with equal probability.

        :param batch_size: B.
        :param env: normalises observations and rewards, if given.
        :return: tensors (B, ...) on the buffer's device, observations in their own types.
        """
        return self._get_samples(np.random.randint(0, self.counts.sum(), size=batch_size), env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> DictReplayBufferSamples:
        """Transitions by number: those of the first environment from the oldest on, then those of the second, ..."""
        ends = np.cumsum(self.counts)
        envs = np.searchsorted(ends, batch_inds, side="right")
        rows = (self.added - ends[envs] + batch_inds) % self.buffer_size
        dones = self.dones[rows, envs] * (1 - self.timeouts[rows, envs])
        rewards = self._normalize_reward(np.float32(self.reward_scale) * self.rewards[rows, envs, None], env)
        return DictReplayBufferSamples(
            observations=self._frames_as_tensors(envs, self.first[rows, envs], env),
            actions=self.to_torch(self.actions[rows, envs], copy=False),
            next_observations=self._frames_as_tensors(envs, self.second[rows, envs], env),
            dones=self.to_torch(dones[:, None], copy=False),
            rewards=self.to_torch(rewards, copy=False),
        )

    def _frames_as_tensors(
        self, envs: np.ndarray, numbers: np.ndarray, env: VecNormalize | None
    ) -> dict[str, torch.Tensor]:
        """Indexing has copied the frames already, so the tensors may share their memory."""
        places = numbers % (self.buffer_size + 1)
        found = {key: frames[envs, places] for key, frames in self.frames.items()}
        arrays = {key: values for key, values in found.items() if isinstance(values, np.ndarray)}
        found |= self._normalize_obs(arrays, env)
        return {key: torch.as_tensor(values, device=self.device) for key, values in found.items()}

    def _shaped(self, observations: Frames) -> Frames:
        """SB3 stores discrete entries as (n_envs, 1)."""
        return {key: observations[key].reshape(self.n_envs, *shape) for key, shape in self.obs_shape.items()}

    def _is_last_frame(self, observations: Frames, env: int) -> bool:
        """Whether an environment's observation is the frame that was stored last for it."""
        last = (self.frame_counts[env] - 1) % (self.buffer_size + 1)
        return self.frame_counts[env] > 0 and all(
            bool((observations[key][env] == frames[env, last]).all()) for key, frames in self.frames.items()
        )

    def _store(self, observations: Frames, envs: np.ndarray) -> None:
        """Append a frame to the rings of some environments."""
        places = self.frame_counts[envs] % (self.buffer_size + 1)
        for key, frames in self.frames.items():
            frames[envs, places] = observations[key][envs]
        self.frame_counts[envs] += 1
