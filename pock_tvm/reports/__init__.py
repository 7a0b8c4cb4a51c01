"""Tables, plots and pages about programs and choices."""
