"""Geometry-aware representation: a latent set of 3D points, learnt by drawing a skeleton as another camera sees it.

Source: Chen, Lin, Liu, Qian, Lin, "Weakly-Supervised Discovery of Geometry-Aware Representation for 3D Human Pose
Estimation", CVPR 2019. A person's 2D skeleton in one view becomes M points in space
(:mod:`~kp3d_rl.geometry_aware.network`); turned by the rotation between two cameras, they must give the skeleton in the
other view (:mod:`~kp3d_rl.geometry_aware.training`). From these points few 3D labels suffice to tell the pose
(:mod:`~kp3d_rl.geometry_aware.regression`).

Skeletons are seen through cameras turned to the root joint (:mod:`~kp3d_rl.geometry_aware.skeleton`), so that two views
differ by a rotation alone. Poses are relative to the root, in the camera's frame.
"""
