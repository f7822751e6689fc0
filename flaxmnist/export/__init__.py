"""Exports for other programs: a module per format, a model card, a parity check."""
