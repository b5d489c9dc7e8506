"""KeypointNet's trainings: what is filmed, run folders, judging, videos."""
