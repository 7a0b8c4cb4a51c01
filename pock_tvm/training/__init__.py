"""Data, recipes and learning rates for fine-tuning."""
