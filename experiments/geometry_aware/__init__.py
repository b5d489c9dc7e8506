"""Geometry-aware representations: people and what is seen of them, run folders, judging, videos."""
