"""What joins the two in unmodified SB3: feature extractors, the auxiliary-loss seam and its callback, policies."""
