"""Tables of claims in Markdown, from results: `python docs/claim_tables.py FILE ...` writes them between
the markers

    <!-- claims: FOLDER -->   ...   <!-- end -->        (also `score` and `line` in place of `claims`)

of each file, FOLDER being that of the results, seen from the working directory.
"""

import re
import sys
from pathlib import Path

from normscope.paper.exhibit import exhibits
from normscope.paper.reproduction import result_path
from normscope.results import load
from normscope.statistics.score import WEIGHTS, counted, multiplicity_line, score_line
from normscope.statistics.verdict import VERDICTS, Verdict

MARKED = re.compile(r"(<!-- (claims|score|line): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def verdicts_of(folder: Path) -> list[Verdict]:
    """All verdicts on the results of a folder, in the report's order."""
    of = [exhibit for exhibit in exhibits().values() if result_path(folder, exhibit).is_file()]
    return [verdict for exhibit in of for verdict in exhibit.verdicts(load(result_path(folder, exhibit)))]


def claims_table(folder: Path) -> str:
    """One row a claim."""
    heads = ("in the paper", "claim", "whose", "required", "paper", "measured", "verdict")
    rows = []
    for one in verdicts_of(folder):
        whose = f"{one.kind}, in-sample" if one.in_sample else one.kind
        verdict = f"{one.verdict}: {one.settled_by}" if one.settled_by else one.verdict
        rows.append((one.where, one.statement, whose, one.requirement, one.paper or "–", one.measured, verdict))
    return _table([heads, *rows])


def score_text(folder: Path) -> str:
    """The counts by kind, the score, and what stands under Benjamini and Hochberg."""
    verdicts = verdicts_of(folder)
    lines = filter(None, (score_line(verdicts), multiplicity_line(verdicts)))
    return f"{_table(counted(verdicts))}\n\n" + "\n\n".join(lines)


def score_sentence(folder: Path) -> str:
    """The paper's claims counted, in one line."""
    papers = [one.verdict for one in verdicts_of(folder) if one.kind in WEIGHTS and not one.in_sample]
    places = [exhibit.where for exhibit in exhibits().values() if result_path(folder, exhibit).is_file()]
    counts = [papers.count(word) for word in VERDICTS]
    return (
        f"CIFAR-10, {', '.join(places)}: {counts[0]} of the paper's {len(papers)} claims reproduced, "
        f"{counts[2]} open ([all](docs/claims.md))."
    )


def filled(text: str, root: Path) -> str:
    """A page's text with what stands between its markers made again from the results below `root`."""
    made = {"claims": claims_table, "score": score_text, "line": score_sentence}

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{made[found[2]](root / found[3])}\n\n{found[4]}"

    return MARKED.sub(block, text)


def _table(rows: list[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(filled(page.read_text(encoding="utf-8"), Path()), encoding="utf-8")
