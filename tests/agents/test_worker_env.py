"""Environments in workers, here and on nodes: the same episodes, nothing shared by mistake, deaths are survived."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv

from agents.vec_env import make_vec_env
from agents.worker_env import WorkerVecEnv
from envs import registry, workers
from envs.errors import UserError
from envs.remote import RayLink
from tests.counting import CountingEnv

ACTIONS = np.zeros((3, 1), np.float32)


ENDS = {False: ("killed by SIGKILL", "killed by SIGABRT"), True: ("its process or its node was lost",) * 2}
"""What is said of workers that were killed by these signals: a process knows more than a node."""
Pool = Callable[..., WorkerVecEnv]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A ray of this machine's, with cores enough for all workers that tests make."""
    import ray

    ray.init(
        address="local",  # not one of the tests' in another process, which ray would find
        num_cpus=16, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(params=[False, True], ids=["processes", "nodes"])
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether workers are on nodes; each death of such counts by itself here."""
    if request.param:
        request.getfixturevalue("cluster")
        monkeypatch.setattr(workers, "TOGETHER", 0.0)
    return request.param


@pytest.fixture
def pool(remote: bool) -> Pool:
    """Makes environments in workers."""
    return functools.partial(WorkerVecEnv, link=RayLink) if remote else WorkerVecEnv


@pytest.fixture
def counting(pool: Pool) -> Iterator[WorkerVecEnv]:
    env = pool([CountingEnv, functools.partial(CountingEnv, length=3), CountingEnv], workers=2)
    yield env
    env.close()


def rollout(env: VecEnv, steps: int) -> list[tuple]:
    generator, seen = np.random.default_rng(0), [(env.reset(), None, None, None)]
    for _ in range(steps):
        seen.append(env.step(generator.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)))
    env.close()
    return seen


def test_episodes_are_those_of_one_process_bit_for_bit(remote: bool) -> None:
    make = functools.partial(registry.make, "reach-multiview", height=16, width=16)
    one, two = (rollout(make_vec_env([make] * 3, seed=5, workers=count, remote=remote), 102) for count in (1, 2))
    for (a, *rest), (b, *others) in zip(one, two, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
        if rest[0] is None:
            continue
        (rewards, ends, infos), (rewards2, ends2, infos2) = rest, others
        np.testing.assert_array_equal(rewards, rewards2)
        np.testing.assert_array_equal(ends, ends2)
        for info, info2 in zip(infos, infos2, strict=True):
            assert set(info) == set(info2) and info["is_success"] == info2["is_success"]
            for key, value in info.get("terminal_observation", {}).items():
                np.testing.assert_array_equal(value, info2["terminal_observation"][key])
    assert sum(step[2].sum() for step in two[1:]) >= 3, "each environment ended an episode"


def test_what_is_handed_out_stays_as_it_was(counting: WorkerVecEnv) -> None:
    seen = [counting.reset()] + [counting.step(ACTIONS)[0] for _ in range(2)]
    assert [float(observation["proprio"][0, 0]) for observation in seen] == [0, 1, 2]
    assert [int(observation["images"][0].max()) for observation in seen] == [0, 1, 2]


def test_an_episode_that_ends_starts_anew_and_its_last_observation_is_in_the_info(counting: WorkerVecEnv) -> None:
    counting.seed(3)
    counting.set_options([{"a": 1}, {}, {}])
    first = counting.reset()
    assert [info["seed"] for info in counting.reset_infos] == [3, 4, 5]
    assert [info["options"] for info in counting.reset_infos] == [{"a": 1}, None, None]
    for _ in range(3):
        observations, rewards, ends, infos = counting.step(ACTIONS + 0.5)
    assert ends.tolist() == [False, True, False] and rewards.tolist() == [3.5, 3.5, 3.5]
    assert observations["proprio"][:, 0].tolist() == [3, 0, 3]
    assert infos[1]["terminal_observation"]["proprio"][0] == 3 and infos[1]["TimeLimit.truncated"]
    assert counting.reset_infos[1]["seed"] is None and first["proprio"].dtype == np.float32


def test_attributes_and_methods_reach_the_environment_that_is_meant(counting: WorkerVecEnv) -> None:
    assert counting.get_attr("length") == [5, 3, 5] and counting.get_attr("length", [2, 1]) == [5, 3]
    counting.set_attr("length", 9, [1])
    assert counting.get_attr("length") == [5, 9, 5]
    assert counting.has_attr("length") and not counting.has_attr("breadth")
    assert counting.get_attr("length", [-1]) == [5]
    with pytest.raises(AttributeError, match="^environment 1 has no attribute 'breadth'$"):
        counting.get_attr("breadth", [1])
    assert [int(picture.max()) for picture in counting.get_images()] == [0, 0, 0]


def test_wrappers_are_told_by_their_class(pool: Pool) -> None:
    env = pool([CountingEnv, lambda: gym.wrappers.TimeLimit(CountingEnv(), 2)], workers=2)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False, True]
    assert env.env_is_wrapped(gym.Wrapper) == [False, True]
    env.close()


def test_environments_of_other_sizes_do_not_share_memory(pool: Pool) -> None:
    for workers_ in (1, 2):
        with pytest.raises(
            UserError, match="^environments side by side need the same observations, got .*3, 3, 3.*5, 5"
        ):
            pool([CountingEnv, functools.partial(CountingEnv, size=5)], workers=workers_)


def test_workers_import_no_torch(counting: WorkerVecEnv) -> None:
    assert counting.env_method("has_torch", also="envs.worker") == [(False, True)] * 3


def test_what_goes_wrong_in_a_worker_is_told(pool: Pool) -> None:
    with pytest.raises(UserError, match="^this environment cannot be made$"):
        pool([functools.partial(CountingEnv, fails="refuse")] * 2, workers=2)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        pool([functools.partial(CountingEnv, fails="crash")] * 2, workers=2)
    env = pool([functools.partial(CountingEnv, fails="step")] * 2, workers=2)
    env.reset()
    with pytest.raises(RuntimeError, match="a bug in step"):
        env.step(ACTIONS[:2])
    env.close()


@pytest.mark.parametrize(("fails", "says"), [("end", "EOFError: the environment's own file"), ("unsendable", "pickle")])
def test_errors_of_an_environment_are_not_taken_for_deaths(fails: str, says: str, pool: Pool) -> None:
    env = pool([functools.partial(CountingEnv, fails=fails), CountingEnv], workers=2)
    env.reset()
    with pytest.raises(RuntimeError, match=says):
        env.step(ACTIONS[:2])
    assert env.workers.deaths == 0 and env.reset()["proprio"][:, 0].tolist() == [0, 0]
    env.close()


def test_answers_that_were_not_waited_for_are_not_taken_for_later_ones(pool: Pool) -> None:
    env = pool([functools.partial(CountingEnv, length=9, fails="once"), *[lambda: CountingEnv(9)] * 2], workers=3)
    env.reset()
    with pytest.raises(RuntimeError, match="a bug in step"):
        env.step(ACTIONS)
    observations, rewards, *_ = env.step(ACTIONS)
    assert observations["proprio"][:, 0].tolist() == rewards.tolist() == [1, 2, 2]
    env.step_async(ACTIONS)  # and the wait for it is interrupted
    observations, rewards, *_ = env.step(ACTIONS)
    assert observations["proprio"][:, 0].tolist() == rewards.tolist() == [3, 4, 4]
    with pytest.raises(AttributeError):
        env.get_attr("breadth")
    assert env.get_attr("steps") == [3, 4, 4] and env.step(ACTIONS)[1].tolist() == [4, 5, 5]
    env.close()


def test_a_death_between_steps_ends_its_episodes_and_keeps_what_was_set(
    capsys: pytest.CaptureFixture, remote: bool
) -> None:
    env = make_vec_env([functools.partial(CountingEnv, length=8)] * 2, seed=0, workers=2, remote=remote)
    env.reset()
    env.set_attr("length", 7)
    for _ in range(3):
        env.step(ACTIONS[:2])
    os.kill(env.unwrapped.workers.pids[0], signal.SIGKILL)
    assert env.get_attr("length") == [7, 7] and env.get_attr("steps") == [0, 3]
    observations, rewards, ends, infos = env.step(ACTIONS[:2])
    assert ends.tolist() == [True, False] and rewards.tolist() == [0, 4]
    assert observations["proprio"][:, 0].tolist() == [0, 4], "the new episode has just begun"
    assert infos[0]["worker_died"] and infos[0]["terminal_observation"]["proprio"][0] == 3
    assert infos[0]["episode"]["l"] == 4 and infos[0]["TimeLimit.truncated"]
    lengths = [info["episode"]["l"] for _ in range(8) for info in env.step(ACTIONS[:2])[3] if "episode" in info]
    assert lengths == [7, 7] and capsys.readouterr().err.count("died") == 1
    env.close()


def test_a_killed_worker_is_replaced_and_its_episodes_are_truncated(
    capsys: pytest.CaptureFixture, remote: bool
) -> None:
    env = make_vec_env([CountingEnv] * 3, seed=0, workers=2, remote=remote)
    pool = env.unwrapped.workers
    env.reset()
    env.step(ACTIONS)
    os.kill(pool.pids[0], signal.SIGKILL)  # of environments 0 and 1
    observations, rewards, ends, infos = env.step(ACTIONS)
    assert ends.tolist() == [True, True, False] and rewards.tolist() == [0.0, 0.0, 2.0]
    assert observations["proprio"][:, 0].tolist() == [0, 0, 2]
    assert infos[0]["TimeLimit.truncated"] and infos[0]["worker_died"] and infos[0]["episode"]["l"] == 2
    assert infos[0]["terminal_observation"]["proprio"][0] == 1, "the last one that was seen"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"worker 1 of 2 died ({ENDS[remote][0]}" in said and "2 episodes" in said
    assert env.step(ACTIONS)[0]["proprio"][:, 0].tolist() == [1, 1, 3]
    os.kill(pool.pids[1], signal.SIGKILL)
    assert env.reset()["proprio"][:, 0].tolist() == [0, 0, 0] and pool.deaths == 2
    env.close()


def test_workers_that_die_again_and_again_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, pool: Pool, remote: bool
) -> None:
    monkeypatch.setattr(workers, "MOST_DEATHS", 1)
    env = pool([CountingEnv] * 2, workers=2)
    env.reset()
    os.kill(env.workers.pids[0], signal.SIGKILL)
    env.step(ACTIONS[:2])
    os.kill(env.workers.pids[1], signal.SIGABRT)
    with pytest.raises(UserError, match=f"worker 2 of 2 died .{ENDS[remote][1]}., death 2 of at most 1"):
        env.step(ACTIONS[:2])
    env.close()
    env.close()


def test_interrupts_are_the_parents_business(counting: WorkerVecEnv) -> None:
    counting.reset()
    for pid in counting.workers.pids:
        os.kill(pid, signal.SIGINT)
    assert counting.step(ACTIONS)[0]["proprio"][:, 0].tolist() == [1, 1, 1] and counting.workers.deaths == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_workers_keep_to_their_cores_where_they_fill_them() -> None:
    before = os.sched_getaffinity(0)
    cores = sorted(before)[:2]
    os.sched_setaffinity(0, cores)
    try:
        for count, expected in ((1, [set(cores)]), (3, [{cores[0]}, {cores[-1]}, {cores[0]}])):
            env = WorkerVecEnv([CountingEnv] * 3, workers=count)
            found = [os.sched_getaffinity(pid) for pid in env.workers.pids]
            env.close()
            assert found == expected or (len(cores) == 1 and found == [set(cores)] * count)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("how", ["kill", "exit", "close"])
def test_nothing_is_left_behind(how: str) -> None:
    code = f"""
import os, signal, sys, time
from agents.worker_env import WorkerVecEnv
from tests.counting import CountingEnv
env = WorkerVecEnv([CountingEnv] * 4, workers=2)
env.reset()
print(*env.workers.pids, flush=True)
if {how!r} == "close":
    env.close()
elif {how!r} == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.stderr == "" and done.returncode == (-9 if how == "kill" else 0)
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            break
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at /proc")
def test_neither_files_nor_processes_leak() -> None:
    """In a process of its own: other tests' clusters come and go in this one."""
    code = """
import os, signal
from pathlib import Path
import numpy as np
from agents.worker_env import WorkerVecEnv
from tests.counting import CountingEnv

def held():
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), len(children)

before = held()
for _ in range(2):
    env = WorkerVecEnv([CountingEnv] * 2, workers=2)
    env.reset()
    os.kill(env.workers.pids[0], signal.SIGKILL)
    env.step(np.zeros((2, 1), np.float32))
    env.close()
    del env
print(before == held())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr
