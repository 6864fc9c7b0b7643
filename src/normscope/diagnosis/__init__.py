"""What is wrong with a model: the evidence, and the rules that read it."""
