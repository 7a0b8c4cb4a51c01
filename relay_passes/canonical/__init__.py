"""Phase 2: one operator for each concept, channels last."""
