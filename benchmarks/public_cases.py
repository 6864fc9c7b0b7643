"""What is said of small set-ups after publicly reported faults?

The set-ups lie in a folder that is not part of this project, which PUBLIC_CASES or the second argument names: one file
a report, whose first line names it. Each is diagnosed as its user would run it; printed are the first finding, its
place, and the seconds of the processor. What ought to come out is said in the folder's own README.

    PUBLIC_CASES=folder python -m benchmarks.public_cases [rows.json [FOLDER [NAME ...]]]
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import headline, write_json
from normscope.cli.batches import loader_of, loss_of
from normscope.cli.target import load_target
from normscope.diagnosis.diagnose import diagnose
from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import score_of
from normscope.errors import NormscopeError

CASES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("double_softmax", "net", "loader", {}),
    ("zero_norm", "net", "loader", {"loss": "hand_norm", "optimizer": "adam"}),
    ("maskpad", "net", "loader", {"optimizer": "adam"}),
    ("maskpad", "net", "loader_first", {"optimizer": "adam"}),
    ("maskpad", "net_nan", "loader", {"optimizer": "adam"}),
    ("maskpad", "net", "loader_ok", {"optimizer": "adam"}),
    ("prices", "net", "loader", {"loss": "mse", "optimizer": "sgd"}),
    ("prices", "net", "loader", {"loss": "mse", "optimizer": "adam"}),
    ("lognll", "net", "loader", {"loss": "nll"}),
    ("lognll", "net", "loader", {"loss": "nll_fixed"}),
    ("wgangp", "net", "loader", {"loss": "wgan"}),
    ("wgangp", "pinn", "points", {"loss": "residual"}),
    ("multiloss", "net", "loader", {"loss": "total"}),
    ("frozen_bn", "net", "loader", {"steps": 60}),
    ("frozen_bn", "net_bn", "loader", {"steps": 60}),
    ("resume", "model", "loader", {"optimizer": "adamw", "steps": 40}),
    ("fp16", "net", "loader", {"optimizer": "adam"}),
    ("fp16", "net_fp32", "loader", {"optimizer": "adam"}),
    ("postln", "net", "loader", {"optimizer": "adam", "steps": 80}),
    ("last_batch", "net", "loader", {}),
    ("broadcast", "net", "loader", {"loss": "my_loss"}),
)


def judged(file: Path, model: str, data: str, options: dict[str, Any]) -> dict[str, Any]:
    """What is said of one set-up."""
    loss = options.get("loss")
    named = loss if loss in (None, "mse") else f"{file}:{loss}"
    begun = time.process_time()
    try:
        tree = diagnose(
            load_target(f"{file}:{model}"),
            loader_of(load_target(f"{file}:{data}")),
            optimizer=options.get("optimizer", "momentum"),
            loss_fn=loss_of(named),
            steps=options.get("steps"),
        )
    except NormscopeError as error:
        return {"refused": str(error), "seconds": round(time.process_time() - begun, 1)}
    faults = [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]
    return {
        "faults": [finding.name for finding in faults],
        "first": f"{faults[0].title} [{faults[0].place}]" if faults else "no fault",
        "score": score_of(tree),
        "seconds": round(time.process_time() - begun, 1),
    }


def main() -> None:
    out = sys.argv[1] if len(sys.argv) > 1 else "-"
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else os.environ.get("PUBLIC_CASES", ""))
    if not list(folder.glob("double_softmax.py")):
        print("no cases: name their folder in PUBLIC_CASES")
        return
    print(headline())
    rows = []
    for name, model, data, options in CASES:
        if sys.argv[3:] and name not in sys.argv[3:]:
            continue
        row = {"case": name, "model": model, "data": data, **options}
        row |= judged(folder / f"{name}.py", model, data, options)
        rows.append(row)
        said = row.get("refused") or row["first"]
        print(f"{name:15} {model:9} {data:12} {options.get('loss', ''):10} {row['seconds']:5} s  {said}", flush=True)
    if out != "-":
        write_json(out, rows)


if __name__ == "__main__":
    main()
