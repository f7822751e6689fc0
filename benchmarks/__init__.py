"""Comparisons with other libraries; none of it is installed with flaxmnist."""
