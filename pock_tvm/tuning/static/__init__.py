"""Estimates of a schedule's speed from its code, where no device is at hand."""
