"""One descent: the loop, optimizers by name, one step as a line, and what became of it."""
