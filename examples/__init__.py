"""Runnable examples; ``demo`` is what ``make demo`` runs."""
