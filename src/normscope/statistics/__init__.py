"""Intervals, ties, verdicts and number formats: numbers in, numbers and words out. No torch here."""
