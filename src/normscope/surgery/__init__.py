"""Change a network without touching it: norms taken out, put in or swapped; weights drawn anew."""

from normscope.surgery.init import with_init
from normscope.surgery.norm import with_norm

__all__ = ["with_init", "with_norm"]
