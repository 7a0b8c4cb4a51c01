"""Finds out what is worth training, and searches for the best scheme of a memory budget."""
