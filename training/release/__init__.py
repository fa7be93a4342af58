"""The released weights: their cubes, their evaluation, and the command that makes them."""
