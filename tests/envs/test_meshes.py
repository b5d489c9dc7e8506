"""Furniture catalogues: which pieces, which way they face, and what becomes of damaged ones."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.errors import UserError
from envs.renderers import make_renderer
from envs.scenes.meshes import entries, opened, read_object, record_catalogues

# A seat of 1 x 1 metres that looks along z, 0.5 high, and a back of another colour behind it: in catalogues y is up.
SEAT = [(-0.5, 0.4, -0.5), (0.5, 0.5, 0.5)]
BACK = [(-0.5, 0.5, -0.5), (0.5, 1.5, -0.4)]
MATERIALS = "newmtl wood\nKd 1 0 0\nnewmtl cloth\nKd 0 0 1\n"


def box(low: tuple[float, ...], high: tuple[float, ...], first: int) -> str:
    """Eight vertices and twelve triangles of an OBJ file."""
    corners = [
        [(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)
    ]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    lines += [f"f {first + a} {first + b} {first + c}\nf {first + a} {first + c} {first + d}" for a, b, c, d in quads]
    return "\n".join(lines) + "\n"


CHAIR = f"mtllib chair.mtl\nusemtl wood\n{box(*SEAT, 1)}usemtl cloth\n{box(*BACK, 9)}"
TURN = "0 0 1 0 1 0 -1 0 0"  # by a quarter about y: z of what is turned comes from -x of what was drawn
PIECES = {
    "chair": ("Oak chair", CHAIR, ""),
    "turned": ("CHAIR", CHAIR, TURN),
    "table": ("Table", CHAIR, ""),
    "wheels": ("Wheelchair", CHAIR, ""),
}


def catalogue(path: Path, pieces: dict[str, tuple[str, str | None, str]]) -> Path:
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, (key, (name, model, rotation)) in enumerate(pieces.items(), 1):
            lines += [f"name#{number}={name}", f"model#{number}=/shop/{key}/chair.obj"]
            lines += [f"modelRotation#{number}={rotation}"] if rotation else []
            archive.writestr(f"shop/{key}/chair.mtl", MATERIALS)
            if model is not None:
                archive.writestr(f"shop/{key}/chair.obj", model)
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    return path


def middles(spec: mujoco.MjSpec) -> dict[str, np.ndarray]:
    """Middle of what is red, the seat, and of what is blue, the back."""
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    found = {}
    for geom in range(model.ngeom):
        mesh = model.geom_dataid[geom]
        start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        vertices = model.mesh_vert[start : start + count] @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
        found["seat" if model.geom_rgba[geom][0] > 0.9 else "back"] = 0.5 * (vertices.min(0) + vertices.max(0))
    return found


def test_pieces_of_a_category_face_forward_and_are_two_units_long(tmp_path: Path) -> None:
    path = catalogue(tmp_path / "shop.sh3f", PIECES)
    with opened(path) as archive:
        found = entries(archive, path, "chair")
        assert [entry.name for entry in found] == ["Oak chair", "CHAIR"]
        straight, turned = (middles(read_object(archive, entry)) for entry in found)
    # 1 x 1.1 x 1 metres become 2 units along z: the seat's middle is 0.5 m below the middle of all
    scale = 2.0 / 1.1
    np.testing.assert_allclose(straight["seat"], [0, 0, scale * (0.45 - 0.95)], atol=1e-5)
    np.testing.assert_allclose(straight["back"], [scale * -0.45, 0, scale * (1.0 - 0.95)], atol=1e-5)
    np.testing.assert_allclose(turned["back"], [0, scale * -0.45, scale * (1.0 - 0.95)], atol=1e-5)


def test_what_cannot_be_drawn_is_skipped_counted_and_named(tmp_path: Path) -> None:
    damaged = {
        "none": ("Chair", None, ""),
        "empty": ("Chair", "# nothing\n", ""),
        "nonsense": ("Chair", "v 0 0 zero\nf 1 2 3\n", ""),
        "sideways": ("Chair", CHAIR, "0 0 1 0 one"),
        "flat": ("Chair", CHAIR, "0 0 0 0 0 0 0 0 0"),
        "infinite": ("Chair", CHAIR.replace("v 0.5 1.5 -0.4", "v 0.5 inf -0.4"), ""),
    }
    path = catalogue(tmp_path / "shop.sh3f", PIECES | damaged)
    renderer = make_renderer()
    views, drawn, skipped = record_catalogues([path], "chair", 3, 48, 0, renderer)
    assert drawn == ["shop/chair/chair.obj", "shop/turned/chair.obj"] and len(views) == 2
    assert views.masks.any((2, 3)).all() and views.landmarks.shape == (2, 0, 3)
    assert [line.split("/")[1] for line in skipped] == list(damaged) and all("\n" not in line for line in skipped)
    assert "missing" in skipped[0] and "empty" in skipped[1] and all("no forward axis" in line for line in skipped[3:5])
    with pytest.raises(
        UserError, match="no chair to be drawn in .*bad.sh3f, 6 could not be drawn, the first: shop/none"
    ):
        record_catalogues([catalogue(tmp_path / "bad.sh3f", damaged)], "chair", 3, 48, 0, renderer)
    renderer.close()


def test_what_is_no_catalogue_is_said_in_one_line(tmp_path: Path) -> None:
    renderer = make_renderer()
    (tmp_path / "no.sh3f").write_text("what is this")
    with zipfile.ZipFile(tmp_path / "other.sh3f", "w") as archive:
        archive.writestr("a", "b")
    for name, message in (
        ("no", "is no furniture catalogue"),
        ("gone", "is no furniture"),
        ("other", "it has no Plugin"),
    ):
        with pytest.raises(UserError, match=message):
            record_catalogues([tmp_path / f"{name}.sh3f"], "chair", 2, 48, 0, renderer)
    renderer.close()
