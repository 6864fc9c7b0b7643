"""Everything measured is a labelled array: how it is labelled, what it says of its origin, how it lies on disk."""

from normscope.results.dataset import Coordinate, Variable, attribute, decoded, labelled, shared, with_attributes
from normscope.results.files import (
    encoded,
    ensure_writable,
    keep,
    load,
    load_if_kept,
    load_tree,
    read_bytes,
    save,
    write_bytes,
    write_text,
)
from normscope.results.origin import provenance, provenance_of

__all__ = [
    "Coordinate",
    "Variable",
    "attribute",
    "decoded",
    "encoded",
    "ensure_writable",
    "keep",
    "labelled",
    "load",
    "load_if_kept",
    "load_tree",
    "provenance",
    "provenance_of",
    "read_bytes",
    "save",
    "shared",
    "with_attributes",
    "write_bytes",
    "write_text",
]
