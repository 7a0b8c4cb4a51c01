"""Phases 6 and 7: which kernel computes what, and in which form."""
