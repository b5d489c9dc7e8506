"""The frame-once replay against SB3's own, and its size against what it allocates."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer

from agents import replay
from agents.memory import available_memory
from agents.replay import FrameReplayBuffer, replay_bytes
from envs.errors import UserError

OBSERVATIONS = spaces.Dict(
    {
        "images": spaces.Box(0, 255, (2, 3, 3, 3), np.uint8),
        "proprio": spaces.Box(-1, 1, (2,), np.float32),
        "phase": spaces.Discrete(1000),
    }
)
ACTIONS = spaces.Box(-1, 1, (2,), np.float64)


@dataclasses.dataclass
class Stream:
    """Environments whose frames are all different, unless told to repeat themselves."""

    n_envs: int
    frozen: bool = False
    shown: int = 0

    def frame(self) -> dict[str, np.ndarray]:
        self.shown += not self.frozen
        number = self.shown
        return {
            "images": np.full((2, 3, 3, 3), number % 256, np.uint8),
            "proprio": np.array([number, -number], np.float32),
            "phase": np.array(number % 1000),
        }

    def frames(self) -> dict[str, np.ndarray]:
        made = [self.frame() for _ in range(self.n_envs)]
        return {key: np.stack([frame[key] for frame in made]) for key in made[0]}


def feed(buffers: list, ends: list[list[str]], stream: Stream) -> None:
    """Steps as SB3 makes them: at an end, ``next_obs`` is the terminal frame and the next step starts afresh."""
    current = stream.frames()
    for step, kinds in enumerate(ends):
        following = stream.frames()
        numbers = 1000.0 * step + np.arange(stream.n_envs)
        actions = np.stack([numbers, -numbers], 1) / 1e6
        done = np.array([kind in ("terminated", "timeout") for kind in kinds])
        infos = [{"TimeLimit.truncated": True} if kind == "timeout" else {} for kind in kinds]
        for buffer in buffers:
            buffer.add(
                {k: v.copy() for k, v in current.items()},
                {k: v.copy() for k, v in following.items()},
                actions.copy(),
                numbers.copy(),
                done.copy(),
                infos,
            )
        anew = np.array([kind != "goes on" for kind in kinds])  # "cut": reset in mid-episode, without done
        fresh = stream.frames()
        current = {
            key: np.where(anew.reshape(-1, *[1] * (value.ndim - 1)), fresh[key], value)
            for key, value in following.items()
        }


def transitions(samples) -> set[tuple]:  # noqa: ANN001
    """Everything in a sample, hashable."""
    parts = [
        *(samples.observations[key] for key in OBSERVATIONS),
        *(samples.next_observations[key] for key in OBSERVATIONS),
        samples.actions,
        samples.dones,
        samples.rewards,
    ]
    return {tuple((str(p.dtype), tuple(p[i].flatten().tolist())) for p in parts) for i in range(len(parts[0]))}


def everything(buffer: FrameReplayBuffer) -> set[tuple]:
    return transitions(buffer._get_samples(np.arange(buffer.counts.sum())))


def everything_sb3(buffer: DictReplayBuffer) -> set[tuple]:
    """SB3 draws the environment at random: ask often enough that none is missed."""
    found = set()
    for env in range(buffer.n_envs):
        rows = np.arange(buffer.buffer_size if buffer.full else buffer.pos)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *a, size, env=env, **k: np.full(size, env))
            found |= transitions(buffer._get_samples(rows))
    return found


KINDS = st.sampled_from(["goes on"] * 6 + ["terminated", "timeout", "cut"])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n_envs=st.integers(1, 3), size=st.integers(1, 30), frozen=st.booleans())
def test_what_is_drawn_is_what_sb3s_own_buffer_holds(data, n_envs: int, size: int, frozen: bool) -> None:  # noqa: ANN001
    ends = data.draw(st.lists(st.lists(KINDS, min_size=n_envs, max_size=n_envs), min_size=1, max_size=40))
    ours = FrameReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", n_envs)
    theirs = DictReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", n_envs)
    stream = Stream(n_envs, frozen)
    feed([ours, theirs], ends, stream)
    kept, stored = everything(ours), everything_sb3(theirs)
    assert kept <= stored
    assert transitions(ours.sample(20)) <= stored
    assert (ours.pos, ours.full, ours.buffer_size) == (theirs.pos, theirs.full, theirs.buffer_size)
    for env in range(n_envs):  # it is the newest that are kept, as many as have their frames
        kinds = [step[env] for step in ends][-theirs.size() :]
        breaks = 0 if frozen else sum(kind != "goes on" for kind in kinds[:-1])
        assert ours.counts[env] >= theirs.size() - breaks
        assert ours.counts[env] >= 1
    if not any(kind != "goes on" for step in ends for kind in step):
        assert kept == stored  # one episode: nothing is lost, also where the buffer is shorter


def test_each_frame_is_stored_once_and_an_episodes_end_is_one_more() -> None:
    buffer = FrameReplayBuffer(100, OBSERVATIONS, ACTIONS, "cpu", 2)
    feed([buffer], [["goes on", "goes on"], ["timeout", "goes on"], ["goes on", "goes on"]], Stream(2))
    assert buffer.frame_counts.tolist() == [5, 4] and buffer.counts.tolist() == [3, 3]


def test_every_transition_is_drawn_equally_often() -> None:
    buffer = FrameReplayBuffer(12, OBSERVATIONS, ACTIONS, "cpu", 2)
    feed([buffer], [["timeout", "goes on"]] * 12, Stream(2))
    assert buffer.counts.tolist() == [3, 6] and buffer.size() == 3  # 7 frames hold 3 episodes of one step
    np.random.seed(0)
    drawn = buffer.sample(9000).rewards.flatten().tolist()
    shares = {reward: drawn.count(reward) / 9000 for reward in set(drawn)}
    assert len(shares) == 9 and min(shares.values()) > 0.09 and max(shares.values()) < 0.13


def test_samples_are_tensors_in_their_own_types_and_copies() -> None:
    buffer = FrameReplayBuffer(4, OBSERVATIONS, ACTIONS, "cpu", 1)
    feed([buffer], [["goes on"], ["terminated"]], Stream(1))
    before = everything(buffer)
    sample = buffer.sample(5)
    assert sample.observations["images"].dtype == sample.next_observations["images"].dtype == torch.uint8
    assert sample.observations["images"].shape == (5, 2, 3, 3, 3) and sample.actions.dtype == torch.float32
    assert sample.dones.shape == sample.rewards.shape == (5, 1)
    for tensor in (*sample.observations.values(), *sample.next_observations.values(), sample.actions):
        tensor.zero_()
    assert everything(buffer) == before


def test_timeouts_are_no_ends_unless_they_are_told_to_be() -> None:
    for handle, done in ((True, 0.0), (False, 1.0)):
        buffer = FrameReplayBuffer(4, OBSERVATIONS, ACTIONS, "cpu", 1, handle_timeout_termination=handle)
        feed([buffer], [["timeout"]], Stream(1))
        assert buffer.sample(1).dones.item() == done


def test_rewards_are_scaled_when_they_are_drawn_and_kept_as_they_came() -> None:
    drawn = []
    for scale in (1.0, 0.25):
        buffer = FrameReplayBuffer(4, OBSERVATIONS, ACTIONS, "cpu", 1, reward_scale=scale)
        feed([buffer], [["goes on"]] * 3, Stream(1))
        drawn.append((buffer._get_samples(np.arange(3)).rewards[:, 0].tolist(), buffer.rewards[:3, 0].tolist()))
    (rewards, kept), (scaled, as_they_came) = drawn
    assert rewards == kept == as_they_came and any(kept) and scaled == pytest.approx([0.25 * r for r in rewards])


def test_reset_forgets() -> None:
    buffer = FrameReplayBuffer(4, OBSERVATIONS, ACTIONS, "cpu", 1)
    feed([buffer], [["goes on"]] * 7, Stream(1))
    buffer.reset()
    assert buffer.size() == 0 and not buffer.full
    stream = Stream(1, shown=500)
    feed([buffer], [["goes on"]], stream)
    assert len(everything(buffer)) == 1 and buffer.sample(3).observations["proprio"][0, 0] == 501


def test_normalisation_reaches_samples() -> None:
    class Normaliser:
        def normalize_obs(self, observations):  # noqa: ANN001, ANN202
            return observations | {"proprio": observations["proprio"] + 5}

        def normalize_reward(self, rewards):  # noqa: ANN001, ANN202
            return rewards * 2.0

    buffer = FrameReplayBuffer(4, OBSERVATIONS, ACTIONS, "cpu", 2)
    feed([buffer], [["goes on"] * 2] * 2, Stream(2))
    sample, plain = (buffer._get_samples(np.arange(4), env) for env in (Normaliser(), None))
    assert torch.equal(sample.observations["proprio"], plain.observations["proprio"] + 5)
    assert torch.equal(sample.next_observations["proprio"], plain.next_observations["proprio"] + 5)
    assert torch.equal(sample.rewards, 2 * plain.rewards) and plain.rewards.abs().max() > 0


# --- size ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "n_envs"), [(1, 1), (10, 1), (10, 3), (2, 4)])
def test_the_stated_size_is_the_allocated_one(size: int, n_envs: int) -> None:
    buffer = FrameReplayBuffer(size, OBSERVATIONS, ACTIONS, "cpu", n_envs)
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray) and value.ndim > 1]
    assert len(arrays) == 6
    total = sum(array.nbytes for array in (*arrays, *buffer.frames.values()))
    assert replay_bytes(OBSERVATIONS, ACTIONS, size, n_envs) == total


def test_half_of_what_sb3_takes() -> None:
    images = spaces.Dict({"images": spaces.Box(0, 255, (3, 64, 64, 3), np.uint8)})
    assert replay_bytes(images, ACTIONS, 100_000) < 0.51 * 2 * 100_000 * 3 * 64 * 64 * 3


@pytest.mark.parametrize("n_envs", [1, 8])
def test_a_replay_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch, n_envs: int) -> None:  # noqa: ANN001
    free = 10_000_000
    monkeypatch.setattr(replay, "available_memory", lambda: free)
    monkeypatch.setattr(replay.np, "zeros", lambda *a, **k: pytest.fail("allocated"))
    with pytest.raises(UserError) as refused:
        FrameReplayBuffer(10**6, OBSERVATIONS, ACTIONS, "cpu", n_envs)
    monkeypatch.undo()
    message = str(refused.value)
    fitting = int(message.split("at most ")[1].split()[0])
    assert "1000000 transitions" in message and "0.01 GB are free" in message and "\n" not in message
    assert replay_bytes(OBSERVATIONS, ACTIONS, fitting, n_envs) <= free
    assert replay_bytes(OBSERVATIONS, ACTIONS, fitting + n_envs, n_envs) > free


def test_no_transition_may_fit(monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.setattr(replay, "available_memory", lambda: 10)
    with pytest.raises(UserError, match="at most 0 transitions fit"):
        FrameReplayBuffer(5, OBSERVATIONS, ACTIONS, "cpu")


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [(OBSERVATIONS, {"optimize_memory_usage": True}, "optimize_memory_usage"), (ACTIONS, {}, "Dict observations")],
)
def test_what_it_cannot_do_is_refused(space: spaces.Space, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FrameReplayBuffer(5, space, ACTIONS, "cpu", **options)


# --- free memory -----------------------------------------------------------------------------------------------------
def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 99999 kB\nMemAvailable:  1000 kB\n"}
V2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "10\n",
    "sys/fs/cgroup/outer/memory.max": "500000\n",
    "sys/fs/cgroup/outer/memory.current": "400000\n",
    "sys/fs/cgroup/outer/memory.stat": "anon 5\ninactive_file 7000\n",
}
V1 = {
    "proc/self/cgroup": "4:cpu:/x\n3:memory,hugetlb:/host/path\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "300000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
}
FULL = V2 | {"sys/fs/cgroup/outer/memory.current": "600000\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, None), (MACHINE, 1_024_000), (MACHINE | V2, 107_000), (MACHINE | V1, 200_050), (V2, 107_000), (FULL, 0)],
)
def test_free_memory_respects_the_limits_of_control_groups(tmp_path: Path, files: dict, expected: int | None) -> None:
    assert available_memory(system(tmp_path, files)) == expected


def test_free_memory_of_this_machine_is_a_sensible_number() -> None:
    free = available_memory()
    assert free is None or 2**20 < free < 2**50
