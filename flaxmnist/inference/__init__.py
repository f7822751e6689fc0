"""Saved runs, and predictions of pictures."""
