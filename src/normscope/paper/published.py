"""The paper's own numbers, as data: most are read off its printed figures, so good to about two digits."""

import json
from importlib.resources import files
from typing import Any

PUBLISHED: dict[str, Any] = json.loads((files("normscope.paper") / "published.json").read_text(encoding="utf-8"))
"""By exhibit ("figure5"), then by quantity; networks are keyed "batch" (with batch norm) and "none"."""
