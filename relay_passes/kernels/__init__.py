"""Phases 6 and 7: kernel selection, weight layouts and fusion."""
