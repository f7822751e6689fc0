"""A trained model for other programs: a module per format, a card, a parity check."""
