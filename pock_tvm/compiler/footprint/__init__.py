"""What a program takes on a device: the memory plan of its bundle, the form of its states, flash and RAM."""
