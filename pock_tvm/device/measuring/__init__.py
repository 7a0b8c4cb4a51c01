"""Checks and times schedules of kernels, and steps of programs, on the device: the tuner's part there.

Needs no compiler: kernels come built.
"""
