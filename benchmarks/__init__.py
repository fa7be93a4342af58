"""Measurements whose results stand in results/, and the demo; none of them is a test."""
