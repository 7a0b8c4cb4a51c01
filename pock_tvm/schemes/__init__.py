"""Schemes: which part of each parameter is trained; named schemes, and those of the PockEngine paper."""
