"""What of a network is trained: schemes, named ones, and those that papers publish."""
