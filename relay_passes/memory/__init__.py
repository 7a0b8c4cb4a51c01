"""Phases 8 and 9: the order of kernels, what is recomputed, and where everything lies."""
