"""Conditions against each other over seeds: which, and what is written of them."""
