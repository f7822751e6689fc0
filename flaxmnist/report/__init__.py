"""Figures, and a page of them; knows nothing of training."""
