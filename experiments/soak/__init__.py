"""What takes too long for the tests: trainings killed hundreds of times, thousands of damaged files, hours of work."""
