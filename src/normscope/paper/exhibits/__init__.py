"""One file per figure, table or claim of the paper: a set-up, a measurement, a picture and verdicts."""
