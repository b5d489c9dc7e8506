"""Multiview bootstrapping: a keypoint detector for single images that learns from what several cameras agree on.

Source: Simon, Joo, Matthews, Sheikh, "Hand Keypoint Detection in Single Images using Multiview Bootstrapping", CVPR
2017. A round: detect in all views (:mod:`~kp3d_rl.bootstrapping.detector`), triangulate robustly
(:mod:`kp3d_rl.triangulation`), leave out what cannot be (:mod:`~kp3d_rl.bootstrapping.plausibility`), keep the best
frame of each window (:mod:`~kp3d_rl.bootstrapping.selection`), project their points into every view as labels, and
train on them and on the first labels (:mod:`~kp3d_rl.bootstrapping.training`).
"""
