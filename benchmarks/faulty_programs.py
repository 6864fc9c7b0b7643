"""Are the faults of real programs named, and sound programs left alone?

Programs of public posts, faulty and mended, lie in a file that is not part of this project: `programs.py` beside
`rivals.json`, in the folder that FAULTY_PROGRAMS or the second argument names. Each is diagnosed with its own rate and
number of steps. Counted are: named (the first finding's category is among the published truth), refused, false alarms
on the mended ones, and repaired: the share of the gap between the faulty and the mended program that the first
finding's advice closes, run as code, with the user's own number of steps where the advice leaves them.

    FAULTY_PROGRAMS=folder python -m benchmarks.faulty_programs [rows.json [FOLDER [even|odd|all]]]
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.machine import headline, write_json
from normscope.descent.recipe import Recipe
from normscope.diagnosis.diagnose import Diagnosis, diagnosed
from normscope.diagnosis.program import Program, run
from normscope.errors import NormscopeError

SEEDS = 3
CLOSED = 0.8
"""Share of the gap from which on a program counts as repaired."""


def load_programs(folder: Path) -> ModuleType:
    """The module of the programs."""
    spec = importlib.util.spec_from_file_location("faulty_programs_of_posts", folder / "programs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def diagnose_program(program: Any) -> tuple[Diagnosis | None, float]:
    """Its diagnosis, None where it is refused, and the processor's seconds."""
    begun = time.process_time()
    torch.manual_seed(0)
    try:
        found = diagnosed(
            program.build(0),
            list(program.batches()),
            Recipe(program.optimizer, program.steps, program.loss_fn),
            lr=program.lr,
            own=True,
        )
    except NormscopeError as error:
        print(f"    refused: {error}")
        found = None
    return found, time.process_time() - begun


def learned(program: Program, build: Any, seed: int) -> float:
    """The score of a program on a seed."""
    torch.manual_seed(seed)
    return max(run(Program(**{**vars(program), "build": build}), seed=seed).score, 0.0)


def closed_gap(faulty: Any, mended: Any, found: Diagnosis, sound: Diagnosis) -> float:
    """The share of the gap that the mended program of the diagnosis closes, mean over seeds; NaN without one, and where
    no fault is told."""
    told = any(finding.fault for finding in found.findings)
    if not told or found.search.program is None or found.facts is None or sound.facts is None:
        return float("nan")
    scores = np.asarray(
        [
            [
                learned(found.facts.program, faulty.build, seed),
                learned(found.search.program, faulty.build, seed),
                learned(sound.facts.program, mended.build, seed),
            ]
            for seed in range(SEEDS)
        ]
    ).mean(0)
    return float((scores[1] - scores[0]) / max(scores[2] - scores[0], 1e-9))


def constant_answers(programs: list[Any]) -> tuple[str, int]:
    """The one category that names most, and how many."""
    names = {name for program in programs for name in program.truth}
    best = max(names, key=lambda name: sum(name in program.truth for program in programs))
    return best, sum(best in program.truth for program in programs)


def main() -> None:
    """Diagnose them all, print a line each and the sums."""
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("FAULTY_PROGRAMS", ""))
    if not (folder / "programs.py").is_file():
        print("no programs.py: set FAULTY_PROGRAMS to the folder that holds it")
        return
    torch.set_num_threads(1)
    question = (__doc__ or "").partition("\n")[0]
    print(f"{question}\n{headline()}\n")
    programs = load_programs(folder).PROGRAMS
    sources = sorted({program.source for program in programs})
    which = sys.argv[3] if len(sys.argv) > 3 else "all"
    chosen = {"even": sources[::2], "odd": sources[1::2], "all": sources}[which]
    rows: list[dict[str, Any]] = []
    kept: dict[str, tuple[Any, Diagnosis | None]] = {}
    for program in programs:
        if program.source not in chosen:
            continue
        found, seconds = diagnose_program(program)
        kept[program.name] = program, found
        faults = [finding for finding in found.findings if finding.fault] if found else []
        row = {
            "program": program.name,
            "faulty": program.faulty,
            "disputed": program.note.startswith("disputed"),
            "truth": list(program.truth),
            "refused": found is None,
            "first": faults[0].category if faults else "",
            "findings": [f"{finding.name} ({finding.category})" for finding in faults],
            "score": found.facts.score if found and found.facts else None,
            "seconds": round(seconds, 1),
        }
        rows.append(row)
        verdict = "named" if row["first"] in program.truth else "ALARM" if faults and not program.faulty else ""
        print(
            f"{program.name:15} {verdict:6} {seconds:5.1f} s  {'/'.join(program.truth):45} {row['findings']}",
            flush=True,
        )
    for row in rows:
        if row["faulty"]:
            faulty, found = kept[row["program"]]
            mended, sound = kept[f"{faulty.source} fixed"]
            row["closed"] = closed_gap(faulty, mended, found, sound) if found and sound else float("nan")
            print(f"{row['program']:15} closes {row['closed']:.2f} of the gap", flush=True)
    faulty_rows = [row for row in rows if row["faulty"] and not row["disputed"]]
    sound_rows = [row for row in rows if not row["faulty"]]
    named = sum(row["first"] in row["truth"] for row in faulty_rows)
    told = sum(bool(row["first"]) for row in faulty_rows)
    alarms = sum(bool(row["findings"]) for row in sound_rows)
    best, count = constant_answers([kept[row["program"]][0] for row in faulty_rows])
    sums = {
        "faulty": len(faulty_rows),
        "flagged": told,
        "named by the first finding": named,
        "repaired": sum(row["closed"] >= CLOSED for row in faulty_rows),
        "refused": sum(row["refused"] for row in rows),
        "sound": len(sound_rows),
        "false alarms": alarms,
        f"always answering {best!r} names": count,
        "slowest": max(row["seconds"] for row in rows),
    }
    print("\n" + "\n".join(f"{name:35} {value}" for name, value in sums.items()))
    rivals = folder / "rivals.json"
    if rivals.is_file():
        published = json.loads(rivals.read_text())
        of = {row["program"]: published["programs"].get(row["program"], {}) for row in faulty_rows}
        for tool in published["tools"]:
            hits = sum(bool(entry.get("named", {}).get(tool)) for entry in of.values())
            print(f"{tool + ' names (published)':35} {hits}")
    if len(sys.argv) > 1 and sys.argv[1] != "-":
        write_json(sys.argv[1], {"sums": sums, "rows": rows})


if __name__ == "__main__":
    main()
