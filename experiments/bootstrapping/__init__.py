"""Multiview bootstrapping as a program: what is filmed, the rounds, what they are worth, what is kept on the disk."""
