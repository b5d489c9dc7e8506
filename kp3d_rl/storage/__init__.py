"""How states and weights are kept: files that are whole or not there, and that are read without trust."""
