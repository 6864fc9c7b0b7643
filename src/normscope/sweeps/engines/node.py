"""A worker on a node of a Ray cluster: started by `cluster`, it carries out one run after the other.

Its checkpoints lie in a folder of its own node. Whoever starts there next, after a crash or another day, goes on from
them; on another node the run begins anew.
"""

import os
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from normscope.errors import NormscopeError, OutputError
from normscope.runtime.allocator import keep_large_blocks
from normscope.sweeps.run import attempt
from normscope.sweeps.store import RunFiles
from normscope.training.config import PROTOCOL, RunConfig, key
from normscope.version import __version__


class NodeWorker:
    """A process of a node."""

    def __init__(self, *, gpu: bool) -> None:
        keep_large_blocks()
        if not gpu:
            # Not every version of Ray hides those that were not asked for, and "auto" would take the first one.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def free(self, kept: str | None) -> tuple[str, int]:
        """Ready for a run; the driver has kept the one of this key. Gives versions, which have to be the driver's."""
        if kept is not None:
            (scratch() / kept).unlink(missing_ok=True)
        return __version__, PROTOCOL

    def run(self, config: dict[str, Any], **options: Any) -> Iterator[int | RunFiles | NormscopeError]:
        """Epochs that are over, as they come, then the files or what went wrong."""
        told: queue.SimpleQueue[int | RunFiles | NormscopeError] = queue.SimpleQueue()

        def work() -> None:
            try:
                checkpoint = scratch() / key(RunConfig.from_mapping(config))
            except NormscopeError as error:
                told.put(error)
            else:
                told.put(attempt(config, checkpoint=checkpoint, on_epoch=told.put, **options))

        Thread(target=work, daemon=True).start()
        while True:
            said = told.get()
            yield said
            if not isinstance(said, int):
                return


def scratch() -> Path:
    """Where checkpoints lie on this node: nobody else's folder under TMPDIR; OutputError where it cannot be had."""
    folder = Path(tempfile.gettempdir()) / f"normscope-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise FileExistsError(0, "it belongs to somebody else")
    except OSError as error:
        raise OutputError(f"cannot keep checkpoints in {folder}: {error.strerror}; set TMPDIR on the node") from error
    return folder
