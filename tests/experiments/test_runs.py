"""Run folders and checkpoints."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import kp3d_rl
from envs.errors import UserError
from experiments.options.config import TrainConfig
from experiments.options.files import ADDED
from experiments.runs import Run
from experiments.runs.contents import without_aliases
from experiments.training.algorithms import load_policy
from experiments.training.building import make_env


@pytest.fixture
def copied(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may damage."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


def sign(folder: Path) -> None:
    """Write the checksums of a checkpoint's files as they are now: what whoever tampers with them can do as well."""
    names = [line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    present = [name for name in names if (folder / name).is_file()]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in present]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_run_folder_holds_everything(tiny_run: Path) -> None:
    for name in ("config.yaml", "rig.json", "metrics.csv", "tensorboard", "checkpoints", "pictures"):
        assert (tiny_run / name).exists(), name
    assert Run.open(str(tiny_run)).steps() == [32, 160]  # after the warm-up, and at the end
    assert list((tiny_run / "pictures").glob("*.png"))


def test_finding_runs(tiny_run: Path, state_run: Path) -> None:
    root = tiny_run.parents[1]
    assert Run.open("tiny", "reach-multiview", root).path == tiny_run
    assert Run.open(str(state_run), None, root).path == state_run
    for arguments, message in (
        ((str(root / "nowhere"), None, root), "no run folder at"),
        ((str(root), None, root), "is not a run: it has no config.yaml"),
        ((None, "Ant-v5", root), "no run of 'Ant-v5'"),
        ((None, "reach-multivew", root), "unknown environment 'reach-multivew': did you mean 'reach-multiview'?"),
        ((None, None, root), "say which run"),
        ((str(tiny_run), "Ant-v5", root), "is a run of 'reach-multiview', not of 'Ant-v5'"),
    ):
        with pytest.raises(UserError, match=message):
            Run.open(*arguments)


def test_without_a_name_the_newest_run_is_taken(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "c", "a")):  # neither the first nor the last by name
        run = Run.create(tmp_path / "reach-multiview" / name, TrainConfig(), None)
        os.utime(run.path / "config.yaml", (1000 * (name == "c"), 1000 * (name == "c") + number))
    (tmp_path / "reach-multiview" / "empty").mkdir()  # no run
    assert Run.open(None, "reach-multiview", tmp_path).path.name == "c"


def test_a_folder_that_appears_meanwhile_is_one_line(tmp_path: Path) -> None:
    Run.create(tmp_path / "x", TrainConfig(), None)
    with pytest.raises(UserError, match="already exists"):
        Run.create(tmp_path / "x", TrainConfig(), None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: (Not a directory|File exists)"):
        Run.create(tmp_path / "file" / "x", TrainConfig(), None)


def test_new_runs_never_touch_what_exists(tiny_run: Path) -> None:
    root = tiny_run.parents[1]
    with pytest.raises(UserError, match="already exists"):
        Run.new_path(TrainConfig(run="tiny"), root)
    for name in ("a/b", "..", "."):
        with pytest.raises(UserError, match="plain folder name"):
            Run.new_path(TrainConfig(run=name), root)
    assert Run.new_path(TrainConfig(env="ns/Env-v0"), root).parent == root / "ns_Env-v0"


def test_checkpoint_round_trip_holds_policy_and_optimizer(opened: Run, tmp_path: Path) -> None:
    checkpoint = opened.load()
    env = make_env(opened.config)
    policy = load_policy(opened, env, checkpoint, "cpu")
    policy.optimizer.load_state_dict(checkpoint.optimizers["policy"])
    again = Run(tmp_path, opened.config)
    again.checkpoints.write(7, policy, {"policy": policy.optimizer}, {"note": 1})
    second = again.load(7)
    assert second.state["note"] == 1 and second.step == 7
    for name, value in policy.state_dict().items():
        assert torch.equal(second.policy[name], value), name
    state, other = policy.optimizer.state_dict(), second.optimizers["policy"]
    assert state["param_groups"][1]["lr_scale"] == other["param_groups"][1]["lr_scale"]
    for parameter, moments in state["state"].items():
        for name, value in moments.items():
            assert torch.equal(other["state"][parameter][name], value)


def test_shared_modules_are_saved_once(tiny_run: Path) -> None:
    from safetensors.torch import load_file

    folder = tiny_run / "checkpoints" / "000000160"
    saved = load_file(folder / "policy.safetensors")
    aliases = json.loads((folder / "state.json").read_text())["aliases"]
    assert not any(name.startswith(("pi_", "vf_")) for name in saved)
    assert any(name.startswith("pi_features_extractor") for name in aliases)
    assert set(aliases.values()) <= set(saved)
    x = torch.ones(2)
    kept, shared = without_aliases({"a": x, "b": x, "c": x.clone()})
    assert set(kept) == {"a", "c"} and shared == {"b": "a"}


def test_a_run_from_before_some_options_is_the_same_run(copied: Path, opened: Run) -> None:
    """Neither its configuration nor its checkpoints have them; any other option they must have."""
    checkpoint = copied / "checkpoints" / "000000160"

    def leave_out(*options: str) -> None:
        config = yaml.safe_load((copied / "config.yaml").read_text())
        head = json.loads((checkpoint / "state.json").read_text())
        for option in options:
            *groups, name = option.split(".")
            for tree in (config, head):
                group = functools.reduce(lambda part, key: part.get(key, {}), groups, tree)
                group.pop(name, None)
        (copied / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (checkpoint / "state.json").write_text(json.dumps(head))
        sign(checkpoint)

    leave_out(*ADDED)
    assert all(option.rpartition(".")[2] not in (copied / "config.yaml").read_text() for option in ADDED)
    older = Run.open(str(copied))
    assert older.config == opened.config
    policy = older.load(160).policy
    assert policy.keys() == opened.load(160).policy.keys()
    leave_out("encoder.loss.variance")
    with pytest.raises(UserError, match=r"encoder.loss.variance': is missing \(default: 2.0\)"):
        Run.open(str(copied))


def test_nothing_of_a_checkpoint_is_unpickled(opened: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    opened.load()
    opened.scene()


def test_damaged_checkpoints_are_one_line(copied: Path) -> None:
    folder = copied / "checkpoints" / "000000160"
    run = Run.open(str(copied))
    with pytest.raises(UserError, match="no checkpoint at step 3, only at 32, 160"):
        run.load(3)
    good = (folder / "policy.safetensors").read_bytes()
    for name, content in (
        ("policy.safetensors", good[: len(good) // 2]),
        ("policy.safetensors", b"\x80\x04junk"),
        ("state.json", b"{"),
        ("state.json", b'{"format": 99}'),
        ("state.json", b"{}"),
        ("state.json", b'{"format": 3, "aliases": [1]}'),
        ("optimizer.safetensors", b""),
        ("training.safetensors", good),
        ("SHA256SUMS", b""),
        ("SHA256SUMS", b"0 policy.safetensors"),
    ):
        for sums_fit in (False, True):  # damage by chance, and by someone who writes checksums too
            before = {file.name: file.read_bytes() for file in folder.iterdir()}
            (folder / name).write_bytes(content)
            if sums_fit and name != "SHA256SUMS":
                sign(folder)
            newer = sums_fit and content == b'{"format": 99}'
            with pytest.raises(UserError, match="by another version: " if newer else "is damaged: ") as error:
                run.load()
            message = str(error.value)
            assert "\n" not in message and ("others stand at step 32" in message) != newer
            assert sums_fit or name == "SHA256SUMS" or f"{name} is damaged: its checksum" in message
            assert ("has format 99, this version reads format 3" in message) == newer
            for file, data in before.items():
                (folder / file).write_bytes(data)
    run.load()
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        run.load()


def test_a_half_written_checkpoint_is_not_seen(copied: Path) -> None:
    run = Run.open(str(copied))
    (copied / "checkpoints" / ".000000999.partial").mkdir()
    (copied / "checkpoints" / "000000998").mkdir()  # no state.json: killed before it was complete
    assert run.steps() == [32, 160] and run.load().step == 160


def test_cameras_size_and_keypoints_that_differ_are_refused_with_both_values(copied: Path) -> None:
    run = Run.open(str(copied))
    checkpoint, env = run.load(), make_env(run.config)
    rig = json.loads((copied / "rig.json").read_text())

    def refusal() -> str:
        with pytest.raises(UserError) as error:
            load_policy(Run.open(str(copied)), env, checkpoint, "cpu")
        return str(error.value)

    (copied / "rig.json").write_text(json.dumps(rig | {"cameras": rig["cameras"] | {"height": 64, "width": 64}}))
    assert "image size 64 x 64 against 32 x 32" in refusal()
    moved = json.loads(json.dumps(rig))
    moved["cameras"]["world_from_camera"][0][0][3] += 0.1
    (copied / "rig.json").write_text(json.dumps(moved))
    assert f"camera '{rig['cameras']['names'][0]}'" in refusal()
    (copied / "rig.json").write_text("{}")
    assert "rig.json is damaged" in refusal()
    (copied / "rig.json").write_text(json.dumps(rig | {"cameras": {}}))
    assert "rig.json is damaged: rig: entry 'names' is missing" in refusal()
    (copied / "rig.json").unlink()
    assert "has no rig.json" in refusal()
    (copied / "rig.json").write_text(json.dumps(rig))
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("keypoints: 4", "keypoints: 5"))
    assert "weights have 4 keypoints, its config.yaml says 5" in refusal()
    (copied / "config.yaml").write_text(text.replace("hidden: 16", "hidden: 24"))
    assert "does not fit its config.yaml" in refusal()


def test_encoder_loads_without_simulator_and_sb3(tiny_run: Path, opened: Run) -> None:
    env = make_env(opened.config)
    observation, _ = env.reset(seed=0)
    images = torch.as_tensor(observation["images"])[None]
    policy = load_policy(opened, env, opened.load(), "cpu")
    expected = policy.features_extractor.encoder(images)
    found = kp3d_rl.load(tiny_run)
    assert torch.equal(found(images).points, expected.points) and not found.training
    assert torch.equal(found.rig.intrinsics, policy.features_extractor.encoder.rig.intrinsics)


def tamper(copied: Path, text: str, other: str) -> None:
    """Change the newest checkpoint's JSON as someone would who knows of the checksums."""
    folder = copied / "checkpoints" / "000000160"
    before = (folder / "state.json").read_text()
    assert text in before
    (folder / "state.json").write_text(before.replace(text, other))
    sign(folder)


def test_encoder_loads_beside_stray_folders_and_from_runs_that_lack_newer_options(copied: Path) -> None:
    shutil.copytree(copied / "checkpoints" / "000000160", copied / "checkpoints" / "000000160.bak")
    tamper(copied, '  "own_view": 0.5,\n', "")
    assert kp3d_rl.load(copied).config.own_view == 0.5
    state = "checkpoints/000000160/state.json"
    for name, content in (("rig.json", b"{"), (state, b"\x80\xff"), (state, b""), (state, b"[]")):
        before = (copied / name).read_bytes()
        (copied / name).write_bytes(content)
        with pytest.raises(ValueError, match="copy holds no usable keypoint encoder: DamagedError: .* its checksum"):
            kp3d_rl.load(copied)
        sign(copied / "checkpoints" / "000000160")
        with pytest.raises(ValueError, match="copy holds no usable keypoint encoder"):
            kp3d_rl.load(copied)
        (copied / name).write_bytes(before)


def test_an_encoder_whose_cameras_move_asks_for_their_poses(copied: Path) -> None:
    """Those in rig.json are of one instant: keypoints by them would be wrong and look right."""
    rig, images = copied / "rig.json", torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    still = kp3d_rl.load(copied)
    rig.write_text(re.sub(r'"moving": *false', '"moving": true', rig.read_text()))
    sign(copied / "checkpoints" / "000000160")
    moving = kp3d_rl.load(copied)
    with pytest.raises(ValueError, match="these cameras move: give their poses"):
        moving(images)
    poses = still.rig.world_from_camera.expand(2, 3, 4, 4)
    assert torch.equal(moving(images, poses).points, still(images).points)


def test_cameras_among_the_weights_must_be_those_of_the_run(copied: Path) -> None:
    weights = copied / "checkpoints" / "000000160" / "policy.safetensors"
    tensors = safetensors.torch.load_file(weights)
    for name in ("intrinsics", "half_extents"):
        other = {n: value * 10 if n.endswith(f"encoder.{name}") else value for n, value in tensors.items()}
        safetensors.torch.save_file(other, weights)
        sign(weights.parent)
        with pytest.raises(ValueError, match=f"'{name}' of its weights is not that of rig.json"):
            kp3d_rl.load(copied)


def test_weights_that_do_not_fit_are_one_line(copied: Path) -> None:
    tamper(copied, '"width": 4,', '"width": 6,')
    with pytest.raises(ValueError, match="no usable keypoint encoder: RuntimeError: .* size mismatch") as error:
        kp3d_rl.load(copied)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_encoder_of_what_is_no_keypoint_run(state_run: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a run"):
        kp3d_rl.load(tmp_path)
    with pytest.raises(ValueError, match="acts on 'state'"):
        kp3d_rl.load(state_run)
    with pytest.raises(FileNotFoundError, match="no checkpoint at step 5"):
        kp3d_rl.load(copied, 5)
    (copied / "checkpoints" / "000000160" / "policy.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="no usable keypoint encoder"):
        kp3d_rl.load(copied)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        kp3d_rl.load(copied)
    with pytest.raises(AttributeError, match="lode"):
        kp3d_rl.lode  # noqa: B018


def test_a_cameras_file_that_the_configuration_does_not_name_is_nobodys(copied: Path) -> None:
    (copied / "cameras.yaml").write_text("")
    run = Run.open(str(copied))
    assert run.config.cameras is None
    with pytest.raises(UserError, match="SHA256SUMS does not list cameras.yaml"):
        run.load()
