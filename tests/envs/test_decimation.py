"""Simplified meshes look like the whole ones, stay where those were, and are kept on disk without trusting the disk."""

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import decimation, simplify, visual_model
from envs.cameras import CameraSpec
from envs.decimation import cache_folder, decimate_meshes, read_mesh
from envs.registry import env_ids, make
from envs.simplify import Mesh
from envs.visual_model import VisualModel

ROOT = Path(__file__).parents[2]
CAMERAS = [CameraSpec(f"c{n}", p, look_at=(0, 0, 0)) for n, p in enumerate([(1.2, 0.4, 0.8), (-0.6, 1.1, 0.1)])]
BALL = """
<asset><mesh name="ball" builtin="sphere" params="4" scale="0.3 0.2 0.2"/></asset>
<worldbody><light pos="0 0 3"/>
  <body><freejoint/><geom type="mesh" mesh="ball" rgba="0.8 0.3 0.2 1"/></body>
</worldbody>
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decimation, "_said", set())
    return tmp_path / "cache" / "kp3d_rl" / "meshes"


def grid_box(cells=24, shared=False):
    """A box of six finely divided sides; unless shared, each side's corners are its own, as in exported CAD files."""
    vertices, faces = [], []
    u, v = (part.ravel() for part in np.meshgrid(*[np.linspace(-1, 1, cells + 1)] * 2, indexing="ij"))
    start = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    quad = np.stack([start, start + cells + 1, start + cells + 2, start + 1], -1)
    for axis in range(3):
        for sign in (-1, 1):
            side = np.empty((len(u), 3))
            side[:, axis], side[:, (axis + 1) % 3], side[:, (axis + 2) % 3] = sign, u, v
            turned = quad if sign > 0 else quad[:, ::-1]
            faces.append(np.concatenate([turned[:, [0, 1, 2]], turned[:, [0, 2, 3]]]) + sum(map(len, vertices)))
            vertices.append(side * [0.3, 0.2, 0.1])
    vertices, faces = np.concatenate(vertices).astype(np.float32), np.concatenate(faces).astype(np.int32)
    if shared:
        vertices, index = np.unique(vertices, axis=0, return_inverse=True)
        faces = index.reshape(-1)[faces].astype(np.int32)
    normals = np.repeat(face_normals(vertices, faces)[:, None], 3, 1).astype(np.float32)
    return Mesh(vertices, faces, normals, np.zeros((0, 3, 2), np.float32))


def face_normals(vertices, faces):
    a, b, c = (vertices[faces[:, n]] for n in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def compare(whole, light, renderer, size=128):
    """Mean absolute difference of the images, and intersection over union of every geom of at least 30 pixels."""
    images = [renderer().render(visual, size, size).astype(int) for visual in (whole, light)]
    segments = [renderer().segment(visual, size, size) for visual in (whole, light)]
    ious = []
    for first, second in zip(*segments, strict=True):
        for geom in np.unique(first[first >= 0]):
            a, b = first == geom, second == geom
            if a.sum() >= 30:
                ious.append((a & b).sum() / (a | b).sum())
    return np.abs(images[0] - images[1]).mean((1, 2, 3)).max(), np.array(ious)


def test_a_ball_keeps_its_place_its_roundness_and_its_shading(scene, require_renderer):
    require_renderer("gl")
    from envs.renderers.gl import GLRenderer

    env = scene(BALL)
    whole, light = (VisualModel(env.fullpath, env.model, CAMERAS, quality=quality) for quality in ("full", "light"))
    undecimated = VisualModel(env.fullpath, env.model, CAMERAS)
    assert whole.model.mesh_facenum[0] == env.model.mesh_facenum[0] > 4000 and light.model.mesh_facenum[0] <= 650
    for name in ("geom_pos", "geom_quat", "mesh_pos", "mesh_quat", "geom_aabb", "geom_size"):
        np.testing.assert_array_equal(getattr(light.model, name), getattr(env.model, name))
    mesh = read_mesh(light.model, 0)
    outside = np.linalg.norm(mesh.vertices / np.ptp(read_mesh(env.model, 0).vertices, axis=0) * 2, axis=1)
    assert 0.97 < outside.min() and outside.max() < 1.03
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=-1), 1.0, atol=1e-3)
    assert (mesh.normals * mesh.vertices[mesh.faces]).sum(-1).min() > 0, "normals point outwards"
    assert light.key == undecimated.key, "the cache gives the same mesh"
    whole.sync(env.model, env.data)
    plain = VisualModel(env.fullpath, env.model, CAMERAS)
    for name in ("mesh_vert", "mesh_face", "mesh_normal", "mesh_facenormal", "mesh_facenum", "mesh_normalnum"):
        getattr(plain.model, name)[:] = getattr(env.model, name)
    plain.key = "whole meshes in light quality"
    difference, ious = compare(plain, light, GLRenderer)
    assert difference < 1.0 and ious.min() > 0.97 and len(ious) == 2


@pytest.mark.parametrize("shared", [True, False])
def test_a_box_keeps_its_edges_and_does_not_tear(shared):
    whole = grid_box(shared=shared)
    found = simplify.simplify(whole)
    assert len(found.faces) <= 400 < len(whole.faces)
    np.testing.assert_allclose(found.vertices.min(0), [-0.3, -0.2, -0.1], atol=0.01)
    np.testing.assert_allclose(found.vertices.max(0), [0.3, 0.2, 0.1], atol=0.01)
    along_an_axis = np.abs(found.normals).max(-1) > 0.99
    assert along_an_axis.mean() > 0.95, "no edge is rounded off"
    assert tears(found) < 0.005


def tears(mesh, rays=4000):
    """Share of rays through the middle of a convex mesh that do not meet exactly one face on their way out."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(rays, 3))
    a, b, c = (mesh.vertices[mesh.faces[:, n]].astype(float) for n in range(3))
    sides = [np.einsum("fd,rd->rf", np.cross(p, q), directions) for p, q in ((a, b), (b, c), (c, a))]
    return float(np.mean(np.all([side > -1e-9 for side in sides], 0).sum(1) == 0))


def test_what_would_look_different_stays_whole():
    rng = np.random.default_rng(0)  # 400 separate triangles in a cloud: nothing can be left out
    vertices = (rng.uniform(-1, 1, (700, 1, 3)) + 0.05 * rng.normal(size=(700, 3, 3))).reshape(-1, 3).astype(np.float32)
    faces = np.arange(2100, dtype=np.int32).reshape(-1, 3)
    normals = np.repeat(face_normals(vertices, faces)[:, None], 3, 1).astype(np.float32)
    soup = Mesh(vertices, faces, normals, np.zeros((0, 3, 2), np.float32))
    assert simplify.simplify(soup) is soup
    assert len(simplify.simplify(grid_box(), tolerance=0.5).faces) <= 250


def test_textures_stay_where_they_are():
    whole = grid_box()
    coordinates = whole.vertices[whole.faces][..., :2].copy()  # painted from above: u = x, v = y
    found = simplify.simplify(Mesh(whole.vertices, whole.faces, whole.normals, coordinates))
    np.testing.assert_allclose(found.coordinates, found.vertices[found.faces][..., :2], atol=0.03)


def test_meshes_are_simplified_once_and_then_read(cache, monkeypatch):
    models = [mujoco.MjModel.from_xml_string(f"<mujoco>{BALL}</mujoco>") for _ in range(4)]
    decimate_meshes(models[0])
    (file,) = cache.iterdir()
    monkeypatch.setattr(decimation, "simplify", lambda mesh: pytest.fail("it was in the cache"))
    decimate_meshes(models[1])
    assert models[1].mesh_facenum[0] == models[0].mesh_facenum[0]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(b"faces", b"feces"), bytes(len(whole))):
        file.write_bytes(damaged)
        model = mujoco.MjModel.from_xml_string(f"<mujoco>{BALL}</mujoco>")
        decimate_meshes(model)
        np.testing.assert_array_equal(model.mesh_face, models[0].mesh_face)
        assert file.read_bytes() == whole and list(cache.iterdir()) == [file], "made anew and put in its place"


def test_a_file_with_faces_of_vertices_that_are_not_there_is_not_believed(cache):
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{BALL}</mujoco>")
    whole = read_mesh(model, 0)
    decimate_meshes(model)
    (file,) = cache.iterdir()
    mesh = read_mesh(model, 0)
    bad = mesh.faces.copy()
    bad[0, 0] = len(mesh.vertices)
    for faces in (bad, -bad, bad.astype(np.int64)):
        np.savez(file, vertices=mesh.vertices, faces=faces, normals=mesh.normals, coordinates=mesh.coordinates)
        assert decimation._load(file, whole) is None


def test_a_folder_that_cannot_be_written_costs_one_line_and_time(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        model = mujoco.MjModel.from_xml_string(f"<mujoco>{BALL}</mujoco>")
        decimate_meshes(model)
        assert model.mesh_facenum[0] <= 650
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(cache_folder()) in said and "XDG_CACHE_HOME" in said


def test_a_mesh_that_cannot_be_simplified_is_drawn_as_it_is(monkeypatch, capsys):
    def refuse(mesh):
        raise ValueError("it has no extent")

    monkeypatch.setattr(decimation, "simplify", refuse)
    model = mujoco.MjModel.from_xml_string(f"<mujoco>{BALL}</mujoco>")
    before = model.mesh_facenum.copy()
    decimate_meshes(model)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "mesh 'ball'" in said and "it has no extent" in said
    np.testing.assert_array_equal(model.mesh_facenum, before)
    with pytest.raises(ValueError, match="no extent"):
        simplify.simplify(Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]] * 600, np.int32), *[np.zeros(0)] * 2))


def test_many_processes_may_start_at_once(cache):
    code = f"""
import mujoco
from envs.decimation import decimate_meshes
model = mujoco.MjModel.from_xml_string({f"<mujoco>{BALL}</mujoco>"!r})
decimate_meshes(model)
print(model.mesh_facenum[0])
"""
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


@pytest.mark.parametrize("env_id", env_ids())
def test_registered_tasks_look_the_same_in_both_qualities(env_id, require_renderer):
    require_renderer("gl")
    from envs.renderers.gl import GLRenderer

    light, full = (make(env_id, height=128, width=128, quality=quality) for quality in ("light", "full"))
    for seed in range(2):
        for env in (light, full):
            env.reset(seed=seed)
        difference, ious = compare(full._synced(), light._synced(), GLRenderer)
        assert ious.min() >= 0.9 and len(ious) >= 12
        assert difference <= 4, "shadows and multisampling are all that differ"


def test_a_robots_meshes_look_the_same_in_metaworlds_hammer_scene(require_renderer):
    require_renderer("gl")
    pytest.importorskip("metaworld")
    from envs.renderers.gl import GLRenderer
    from experiments.bench.scenes import hammer

    scene = hammer()
    base = scene.env.unwrapped
    light = VisualModel(base.fullpath, base.model, scene.cameras)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visual_model, "decimate_meshes", lambda model: None)
        whole = VisualModel(base.fullpath, base.model, scene.cameras)
    assert whole.model.mesh_facenum.sum() > 60_000 > 12_000 > light.model.mesh_facenum.sum()
    for visual in (whole, light):
        visual.sync(base.model, base.data)
    difference, ious = compare(whole, light, GLRenderer)
    assert difference <= 1.0 and len(ious) > 30
    assert ious.mean() >= 0.97 and ious.min() >= 0.85, "a strip of the pedestal is seen, a pixel matters"
