"""The directory of a run; knows nothing of training."""
