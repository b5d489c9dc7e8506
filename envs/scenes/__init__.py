"""Scenes that are rendered as data for keypoint methods: calibrated images with the truth beside them, and no task."""
