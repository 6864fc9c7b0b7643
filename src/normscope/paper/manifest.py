"""What a folder of results consists of: every result file with its checksum, and the commands that filled it."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normscope.results import provenance, write_text

MANIFEST_NAME = "manifest.json"


def write_manifest(folder: str | Path, command: Sequence[str], note: str = "") -> Path:
    """Write `manifest.json`: the commands that filled the folder up to this one, each with when it ended, on what
    processor and with which versions, the notes that were given to them, and size and SHA-256 of every netCDF file
    below it, the runs of trained exhibits included. OutputError where it cannot be written."""
    folder = Path(folder)
    now = {"command": shlex.join(command), "ended": datetime.now(UTC).isoformat(timespec="seconds"), **_versions()}
    earlier = [then for then in _commands_before(folder) if then["command"] != now["command"]]
    files = sorted(path for path in folder.rglob("*.nc") if not path.name.startswith("."))
    manifest = {
        "commands": [*earlier, now],
        "notes": list(dict.fromkeys([*notes_of(folder), *([note] if note else [])])),
        "files": {path.relative_to(folder).as_posix(): _identity(path) for path in files},
    }
    return write_text(folder / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")


def _commands_before(folder: Path) -> list[dict[str, Any]]:
    """Those of the manifest that the folder has."""
    commands = _manifest_of(folder).get("commands")
    found = commands if isinstance(commands, list) else []
    return [then for then in found if isinstance(then, dict) and then.get("command")]


def notes_of(folder: str | Path) -> list[str]:
    """What those who filled a folder had to say of its results, from its manifest."""
    notes = _manifest_of(Path(folder)).get("notes")
    return [note for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def _manifest_of(folder: Path) -> dict[str, Any]:
    """Empty where the folder has none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _identity(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _versions() -> dict[str, Any]:
    import torch

    versions = {name: value for name, value in provenance().items() if name not in ("device", "dtype")}
    return {**versions, "processor": torch.backends.cpu.get_cpu_capability()}
