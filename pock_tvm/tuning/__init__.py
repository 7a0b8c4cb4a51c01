"""Tunes the schedules of a program's kernels on the machine that it is for."""
