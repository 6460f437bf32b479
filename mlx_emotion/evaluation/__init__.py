"""Judging what a text shows."""
