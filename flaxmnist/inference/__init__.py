"""A saved run, and its predictions for pictures."""
