"""Unsupervised 3D keypoints from several cameras, in pure PyTorch: no simulator and no reinforcement-learning library.

Conventions, stated here once; every function of the package follows them.

**Frames and units.** Lengths are metres, angles radians unless the name says degrees. A pose ``world_from_camera`` is a
4x4 matrix that takes points from the camera frame to the world frame. Camera frames have OpenCV axes: x to the right,
y down, z forward along the line of sight; *depth* is the z coordinate, not the distance along the ray.

**Pixels.** ``intrinsics`` are ``[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]`` in pixels. Row 0 is the top row. A point in
an image is ``uv = (u, v)``: u counts columns to the right, v counts rows down. Pixel centres lie at half-integers: the
pixel in row 0, column 0 has its centre at (0.5, 0.5), the image spans [0, W] x [0, H], and cx = W / 2 is the middle.
A crop, a pad or a resize of the image is a change of the intrinsics and nothing else.

**Shapes.** V counts cameras (views), K keypoints. The camera axis stands right before K, or right before an image:
``points (..., V, K, 3)``, ``uv (..., V, K, 2)``, ``images (..., V, C, H, W)``. Whatever stands before it, written
``...``, is any number of batch dimensions, which broadcast against the rig's own: a fixed rig has poses ``(V, 4, 4)``,
moving cameras have ``(..., V, 4, 4)``.

**Numbers.** Everything works in float32 and float64, is differentiable, and has no Python loop over batch or views.
"""


def __getattr__(name: str):
    # On first use, so that importing the package alone stays light.
    if name == "load":
        from kp3d_rl.loading import load

        return load
    raise AttributeError(f"module 'kp3d_rl' has no attribute '{name}'")
