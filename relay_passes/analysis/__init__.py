"""Analyses of functions."""
