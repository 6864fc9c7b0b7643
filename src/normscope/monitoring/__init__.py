"""The same instruments beside a running training: when they measure, what they see, alarms and the flight record."""
