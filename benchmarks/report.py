"""How long does the report of a reproduction take, where does the time go, and how large is the page?

The floor is the whole of it in a process that has done it once before; beside it stand its parts, and the command
`normscope report FOLDER` in a fresh process, which takes longer by all that it has to import and to see for the first
time. Target: the report within 5 s, the page within 10 MB, which is said beside it.

The folder is that of a finished `normscope reproduce`. Where none is given, some exhibits are measured first, with
ResNet-20 and three seeds on the digits.

    python -m benchmarks.report [rows.json [FOLDER]]
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.timing import Row, report, rows
from normscope.data import load_data
from normscope.paper.exhibit import Setting, exhibits
from normscope.paper.measurement import reproduce
from normscope.paper.reproduction import REPORT_NAME, garbage_kept, picture, report_reproduction, result_path
from normscope.results import load

ROUNDS = 3
MEASURED = ("figure2", "figure3", "figure4", "figure5", "figure6", "table1")
COMMAND = "import sys; sys.argv = ['normscope', 'report', {folder!r}]; from normscope.cli import main; main()"


def measure(folder: Path) -> Iterator[Row]:
    found = {name: exhibit for name, exhibit in exhibits().items() if result_path(folder, exhibit).is_file()}
    loaded = {name: load(result_path(folder, exhibit)) for name, exhibit in found.items()}

    def pictures() -> None:
        with garbage_kept():
            for name, exhibit in found.items():
                picture(exhibit, loaded[name])

    command = [sys.executable, "-c", COMMAND.format(folder=str(folder))]
    contestants = {
        f"report of {len(found)} exhibits": lambda: report_reproduction(folder),
        "    reading the results": lambda: [load(result_path(folder, exhibit)) for exhibit in found.values()],
        "    verdicts": lambda: [exhibit.verdicts(loaded[name]) for name, exhibit in found.items()],
        "    drawing": lambda: [exhibit.draw(loaded[name]) for name, exhibit in found.items()],
        "    drawing and writing as SVG": pictures,
        "    the command": lambda: subprocess.run(command, check=True, capture_output=True),
    }
    first, *others = rows(contestants, rounds=ROUNDS)
    size = {"MB": (folder / REPORT_NAME).stat().st_size / 1e6}
    yield from (first, *others[:-1])
    yield replace(others[-1], quality=size)


def main() -> None:
    if len(sys.argv) > 2:
        report(__doc__, measure(Path(sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as folder:
        reproduce(MEASURED, Setting(load_data("digits"), net="resnet20"), folder)
        report(__doc__, measure(Path(folder)))


if __name__ == "__main__":
    main()
