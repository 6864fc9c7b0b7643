"""What a folder of results consists of: every result file with its checksum, and the commands that filled it."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from normscope.errors import ResultError, one_line
from normscope.results import provenance, read_bytes, write_text

MANIFEST_NAME = "manifest.json"

PARTS = "unfinished"
"""The folder, among the results, of what is measured of exhibits that are not finished: no manifest lists it."""

_AGAIN = "run `normscope reproduce` again"

_REMOVE = f"mend it, or remove it and {_AGAIN}"

_MOST_BYTES = 2**26


def write_manifest(folder: str | Path, command: Sequence[str], note: str = "") -> Path:
    """Write `manifest.json`: the commands that filled the folder up to this one, each with when it ended, on what
    processor and with which versions, the notes that were given to them, and size and SHA-256 of every netCDF file
    below it, the runs of trained exhibits included. With a checksum of its own.

    Raises:
        OutputError: where it cannot be written.
        ResultError: where the folder has a manifest that is damaged.
    """
    folder = Path(folder)
    now = {"command": shlex.join(command), "ended": datetime.now(UTC).isoformat(timespec="seconds"), **_versions()}
    earlier = [then for then in _commands_before(folder) if then["command"] != now["command"]]
    found = (path for path in folder.rglob("*.nc") if not path.name.startswith("."))
    files = sorted(path for path in found if path.relative_to(folder).parts[0] != PARTS)
    manifest = {
        "commands": [*earlier, now],
        "notes": list(dict.fromkeys([*notes_of(folder), *([note] if note else [])])),
        "files": {path.relative_to(folder).as_posix(): _identity(path) for path in files},
    }
    manifest["sha256"] = _digest(manifest)
    return write_text(folder / MANIFEST_NAME, json.dumps(manifest, indent=1) + "\n")


def refuse_other_files(folder: str | Path) -> None:
    """Compare the files below a folder with its manifest, if it has one.

    Raises:
        ResultError: for a file that is listed and is not there or not the same, or a manifest that cannot be read.
    """
    folder = Path(folder)
    for name, listed in _listed_files(folder).items():
        path = folder / name
        if not path.is_file():
            raise ResultError(f"{path} is missing, and {MANIFEST_NAME} lists it: put it back, or {_AGAIN}")
        if _identity(path) != listed:
            raise ResultError(f"{path} is not the file that {MANIFEST_NAME} lists: put that one back, or {_AGAIN}")


def is_as_listed(path: Path) -> bool:
    """Whether a result is the file that the manifest beside it lists, or is not listed at all."""
    listed = _listed_files(path.parent).get(path.name)
    return listed is None or _identity(path) == listed


def _listed_files(folder: Path) -> dict[str, Any]:
    files = _manifest_of(folder).get("files", {})
    inside = isinstance(files, dict) and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    if not inside:
        raise ResultError(f"{folder / MANIFEST_NAME} is damaged: {_REMOVE}")
    return files


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
    """Empty where the folder has none; ResultError for one that is damaged, whose notes would be lost."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        return {}
    try:
        manifest = json.loads(read_bytes(path, most=_MOST_BYTES))
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
        digest = manifest.pop("sha256", None)
        if digest is not None and digest != _digest(manifest):
            raise ValueError("its checksum differs")
    except Exception as error:
        raise ResultError(f"{path} is damaged ({one_line(error)[:120]}): {_REMOVE}") from error
    return manifest


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _identity(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _versions() -> dict[str, Any]:
    import torch

    versions = {name: value for name, value in provenance().items() if name not in ("device", "dtype")}
    return {**versions, "processor": torch.backends.cpu.get_cpu_capability()}
