"""The paper: one file per figure, table or claim, each a set-up, a measurement, a picture and verdicts."""
