"""What joins the two in unmodified Stable-Baselines3: extractors, the auxiliary-loss seam and its callback, policies."""
