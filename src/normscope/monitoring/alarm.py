"""An alarm: what is wrong, where, since when, and what to do about it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """What `watch` tells, as it happens."""

    step: int
    """At which it was seen, counted from 0."""
    kind: str
    """"divergence ahead", "bad batch", "overflow" or "diverged"."""
    layer: str
    """Where, as a path of `named_modules`; empty where it is no one layer."""
    sentence: str
    """What, where, since when, and what to do."""
    confidence: float
    """Of 1: for a warning, the share of such warnings that came true in the runs that the rule was fitted on."""
