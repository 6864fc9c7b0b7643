"""Faults by kind: what is wrong with a network, or with how it is set up."""
