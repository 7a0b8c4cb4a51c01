"""Phases 8 and 9: kernel order, rematerialisation, and the memory plan."""
