"""Write what each Dataset holds into docs/variables.md, from the `VARIABLES` of the code: `python docs/variables.py`.

Between two markers, `<!-- variables: NAME -->` and `<!-- end -->`, goes a table. NAME is that of a probe, or of a
module below `normscope`.
"""

import importlib
import re
from pathlib import Path

from normscope.results.schema import table

PAGE = Path(__file__).with_suffix(".md")
MARKERS = re.compile(r"(<!-- variables: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The page with its tables as they are declared."""

    def written(match: re.Match[str]) -> str:
        module = match[2] if "." in match[2] else f"probes.{match[2]}"
        variables = importlib.import_module(f"normscope.{module}").VARIABLES
        return f"{match[1]}\n{table(variables)}\n\n{match[3]}"

    return MARKERS.sub(written, text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
