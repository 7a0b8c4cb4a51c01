"""Kernel definitions and schedules for training, by target family."""
