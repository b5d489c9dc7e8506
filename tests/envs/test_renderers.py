"""Renderers: they agree with each other, share, survive workers, say what is missing, and leave quietly."""

import functools
import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading

import gymnasium as gym
import numpy as np
import pytest

from envs.cameras import CameraSpec
from envs.errors import UserError
from envs.registry import make
from envs.renderers import gl_info, make_renderer, opengl


@pytest.fixture
def gl(require_renderer):
    require_renderer("gl")


@pytest.fixture
def warp(require_renderer):
    require_renderer("warp")


def run(code, **environment):
    """Run a program of its own, with none of this process's choices; its output and exit code."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, **environment},
    )


def test_both_renderers_show_the_same(gl, warp):
    one, two = make("reach-multiview", renderer="gl"), make("reach-multiview", renderer="warp")
    for seed in range(3):
        one.reset(seed=seed)
        two.reset(seed=seed)
        images = one.render_views().astype(int), two.render_views().astype(int)
        assert np.abs(images[0] - images[1]).mean() < 2
        assert (np.abs(images[0] - images[1]).max(-1) > 40).mean() < 0.01  # edges
        assert (one.segment_views() == two.segment_views()).mean() > 0.99
    assert np.abs(one.background.astype(int) - two.background).mean() < 2
    for env in (one, two):
        ball = env.unwrapped.model.geom("target_ball")
        ball.rgba[:], ball.size[0] = [0.1, 0.9, 0.1, 1], 0.08
    images = one.render_views().astype(int), two.render_views().astype(int)
    assert np.abs(images[0] - images[1]).mean() < 2
    one.close()
    two.close()


@pytest.mark.parametrize("name", ["gl", "warp"])
def test_images_are_fresh_and_the_background_is_too(name, require_renderer):
    require_renderer(name)
    env = make("reach-multiview", renderer=name)
    first = env.reset(seed=0)[0]["images"]
    kept = first.copy()
    env.reset(seed=1)
    np.testing.assert_array_equal(first, kept)
    env.background[:] = 0
    assert env.background.any()
    env.close()


@pytest.mark.parametrize("name", ["gl", "warp"])
def test_closing_twice_and_rendering_after_closing_is_allowed(name, require_renderer):
    require_renderer(name)
    env = make("reach-multiview", renderer=name)
    images = env.reset(seed=0)[0]["images"]
    env.close()
    env.close()
    np.testing.assert_array_equal(env.render_views(), images)
    env.close()


def test_equal_environments_share_buffers_until_the_last_is_closed(gl):
    from envs.renderers.gl import _process_gl

    gc.collect()  # environments that other tests dropped without closing
    environments = [make("reach-multiview", renderer="gl") for _ in range(3)]
    other = make("reach-multiview", renderer="gl", cameras="left")
    images = [env.reset(seed=0)[0]["images"] for env in [*environments, other]]
    key = environments[0]._visual.key
    before = _process_gl().scenes[key].users - 3  # of tests that keep some
    assert before >= 0 and other._visual.key in _process_gl().scenes
    np.testing.assert_array_equal(images[3][0], images[0][0])
    environments[0].close()
    environments[0].close()
    del environments[1]._renderer  # dropped without closing
    assert _process_gl().scenes[key].users == before + 1
    np.testing.assert_array_equal(environments[2].render_views(), images[2])
    environments[2].close()
    assert _process_gl().scenes[key].users == before if before else key not in _process_gl().scenes
    np.testing.assert_array_equal(other.render_views(), images[3])
    other.close()


def test_different_models_do_not_disturb_each_other(gl, scene):
    from envs.multiview import MultiViewObservation

    red = '<worldbody><light pos="0 0 3"/><geom size="0.5" rgba="1 0 0 1"/></worldbody>'
    camera = CameraSpec("c", (2, 0, 0), look_at=(0, 0, 0))
    environments = [
        MultiViewObservation(scene(xml), [camera], observe=("images",), renderer="gl")
        for xml in (red, red.replace("1 0 0 1", "0 0 1 1"))
    ]
    first = [env.reset(seed=0)[0]["images"] for env in environments]
    assert first[0][0, 32, 32].argmax() == 0 and first[1][0, 32, 32].argmax() == 2
    for size in (64, 200, 64):  # growing one's buffers
        environments[0].render_views(size, size)
        np.testing.assert_array_equal(environments[1].render_views(), first[1])
        np.testing.assert_array_equal(environments[0].render_views(), first[0])
    environments[1].close()
    np.testing.assert_array_equal(environments[0].render_views(), first[0])
    environments[0].close()


def test_each_view_is_what_a_renderer_of_its_own_would_draw(gl):
    """Drawing the views side by side changes nothing: neither light nor edges come from a neighbour."""
    env = make("reach-multiview", renderer="gl")
    together = env.reset(seed=3)[0]["images"]
    for view, name in enumerate(env.rig.names):
        alone = make("reach-multiview", renderer="gl", cameras=name)
        np.testing.assert_array_equal(alone.reset(seed=3)[0]["images"][0], together[view])
        alone.close()
    env.close()


def test_more_views_than_fit_side_by_side_are_what_each_alone_would_be(gl, monkeypatch):
    env = make("reach-multiview", renderer="gl")
    env.reset(seed=0)
    together = env.render_views(48, 64), env.segment_views(48, 64)
    monkeypatch.setattr("envs.renderers.gl._WIDEST", 130)  # two of the three
    apart = env.render_views(48, 64), env.segment_views(48, 64)
    assert len(apart[0]) == 3
    for whole, parts in zip(together, apart, strict=True):
        np.testing.assert_array_equal(whole, parts)
    env.close()


def test_another_thread_may_render(gl):
    env = make("reach-multiview", renderer="gl")
    images = env.reset(seed=0)[0]["images"]
    seen = []
    thread = threading.Thread(target=lambda: seen.append(env.render_views()))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(seen[0], images)
    np.testing.assert_array_equal(env.render_views(), images)
    env.close()


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_worker_processes_render(start, gl):
    """Also where the parent has rendered before."""
    parent = make("reach-multiview")
    expected = parent.reset(seed=0)[0]["images"]
    if start == "fork" and not opengl.survives_fork(gl_info()):
        pytest.skip("this OpenGL does not survive a fork")
    workers = gym.vector.AsyncVectorEnv([functools.partial(make, "reach-multiview")] * 2, context=start)
    images = workers.reset(seed=[0, 1])[0]["images"]
    np.testing.assert_array_equal(images[0], expected)
    assert not np.array_equal(images[1], expected)
    workers.close()
    np.testing.assert_array_equal(parent.render_views(), expected)
    parent.close()


def test_a_fork_that_could_hang_is_refused(gl, monkeypatch):
    env = make("reach-multiview", renderer="gl")
    env.reset(seed=0)
    monkeypatch.setattr(opengl, "survives_fork", lambda info: False)

    def child(connection):
        try:
            env.render_views()
            connection.send("rendered")
        except UserError as error:
            connection.send(str(error))

    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert mine.poll(30) and "start workers by 'spawn' or 'forkserver'" in mine.recv()
    process.join(30)
    env.close()


def test_info_names_the_driver(gl):
    info = gl_info()
    assert set(info) == {"platform", "vendor", "renderer", "version", "software"}
    assert info["platform"] in ("egl", "osmesa", "glfw", "native") and info["renderer"]
    assert type(info["software"]) is bool


@pytest.mark.parametrize("ending", ["", "env.close()", "env2.close()", "del env"])
def test_processes_end_quietly(gl, ending):
    done = run(
        f"""
        from envs.registry import make
        env, env2 = make("reach-multiview", renderer="gl"), make("reach-multiview", renderer="gl", cameras="left")
        env.reset(seed=0), env2.reset(seed=0)
        {ending}
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


WITHOUT_OPENGL = """
import ctypes, sys

class NoOpenGLHere(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        if name and any(part in str(name) for part in ("libGL", "EGL", "OSMesa", "OpenGL", "GLU")):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = ctypes.cdll._dlltype = NoOpenGLHere
from envs.errors import UserError
from envs.registry import make
"""


def test_without_opengl_one_line_names_the_fix():
    done = run(
        WITHOUT_OPENGL
        + """
env = make("reach-multiview", renderer="gl")
for _ in range(2):
    try:
        env.reset(seed=0)
    except UserError as error:
        print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()  # each on one line
    assert first == second
    assert first.startswith("no OpenGL (egl: library not found; osmesa: library not found); ")
    assert "sudo apt-get install" in first and "warp" in first


def test_without_opengl_the_ray_tracer_takes_over(warp):
    done = run(
        WITHOUT_OPENGL
        + """
env = make("reach-multiview", renderer="auto")
images = env.reset(seed=0)[0]["images"]
print(env._renderer.name, images.shape, images.std() > 20)
"""
    )
    assert done.stdout.splitlines()[-1:] == ["warp (3, 64, 64, 3) True"], done.stderr


def test_without_opengl_and_ray_tracer_one_line_names_both():
    done = run(
        WITHOUT_OPENGL
        + """
sys.modules["mujoco_warp"] = None
for renderer in ("auto", "warp"):
    try:
        make("reach-multiview", renderer=renderer).reset(seed=0)
    except UserError as error:
        print(error)
"""
    )
    automatic, warp = done.stdout.splitlines()
    assert "sudo apt-get install" in automatic and "mujoco-warp" in automatic
    assert "needs mujoco-warp, which is not installed" in warp and "pip install" in warp


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"MUJOCO_GL": "bogus"}, "unknown value of MUJOCO_GL 'bogus': valid: egl, osmesa, glfw"),
        ({"MUJOCO_GL": "off"}, "MUJOCO_GL=off forbids OpenGL"),
        ({"PYOPENGL_PLATFORM": "elg"}, "unknown value of PYOPENGL_PLATFORM 'elg': did you mean 'egl'?"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="these variables are read on Linux")
def test_environment_variables_that_forbid_or_misname_are_reported(variables, message):
    done = run(
        """
        from envs.errors import UserError
        from envs.registry import make
        try:
            make("reach-multiview", renderer="gl").reset(seed=0)
        except UserError as error:
            print(error)
        """,
        **variables,
    )
    assert message in done.stdout, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="EGL and OSMesa are Linux's")
def test_the_variables_choose_the_platform(monkeypatch):
    for variable in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(variable, raising=False)
    assert opengl.platforms_to_try() == ["egl", "osmesa"]
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert opengl.platforms_to_try() == ["osmesa"]
    monkeypatch.setenv("MUJOCO_GL", " EGL ")
    assert opengl.platforms_to_try() == ["egl"]


def test_a_missing_platform_library_does_not_stop_the_import():
    """MuJoCo itself fails to import where MUJOCO_GL names a library that is not there; physics needs none."""
    code = (
        WITHOUT_OPENGL
        + """
import os
env = make("reach-multiview", observe=("proprio",))
env.reset(seed=0)
print(os.environ["MUJOCO_GL"])
try:
    env.render_views()
except UserError as error:
    print(error)
"""
    )
    done = run(code.replace('observe=("proprio",)', 'observe=("proprio",), renderer="gl"'), MUJOCO_GL="osmesa")
    assert done.returncode == 0, done.stderr
    variable, message = done.stdout.splitlines()
    assert variable == "osmesa" and message.startswith("no OpenGL (osmesa: ") and "egl: " not in message


def test_a_model_that_warp_cannot_do_is_named(warp, scene, monkeypatch):
    import mujoco_warp

    def refuse(model):
        raise NotImplementedError("plugins\nnot supported")

    from envs.multiview import MultiViewObservation

    monkeypatch.setattr(mujoco_warp, "put_model", refuse)
    env = MultiViewObservation(
        scene('<worldbody><geom size="0.5"/></worldbody>'),
        [CameraSpec("c", (2, 0, 0), look_at=(0, 0, 0))],
        observe=("images",),
        renderer="warp",
    )
    with pytest.raises(UserError, match=r"warp cannot do this model \(plugins not supported\)"):
        env.reset(seed=0)


def test_unknown_renderers_are_named():
    with pytest.raises(UserError, match="unknown renderer 'egl'.*valid: auto, gl, warp"):
        make_renderer("egl")
