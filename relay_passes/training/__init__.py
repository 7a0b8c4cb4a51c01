"""Phases 3 to 5: the loss, the backward graph and the update."""
