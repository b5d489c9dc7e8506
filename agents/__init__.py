"""What joins keypoints and environments in unmodified Stable-Baselines3: extractors, the auxiliary-loss seam, policies."""
