"""Phase 2: one operator for each thing, channels last."""
