"""KeypointNet: ordered 3D keypoints of a category of objects, learnt from pairs of views of known relative pose.

Source: Suwajanakorn, Snavely, Tompson, Norouzi, "Discovery of Latent 3D Keypoints via End-to-end Geometric Reasoning",
NeurIPS 2018. From one image a network finds K keypoints with their depths (:mod:`~kp3d_rl.keypointnet.network`); what
it finds in two views must be the same points, and must tell how the camera turned (:mod:`~kp3d_rl.keypointnet.losses`).

Objects are about 2 units long and stand at the origin of their own frame, x forward and z up; the cameras' poses are in
that frame. Nothing but the poses of two views relative to each other, and silhouettes, is used to learn.
"""
