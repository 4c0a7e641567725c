"""Texts compared: whether two are equal or near-duplicates, and whether one repeats itself."""
