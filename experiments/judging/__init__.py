"""What runs are worth: episodes that are played, evaluations on whole and on changed observations, probes."""
