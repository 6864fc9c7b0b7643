"""A worker process of this machine: `python -m normscope.sweep.worker DESCRIPTOR`, started by `local`.

It is told of runs over a socket, one JSON message each, and answers with messages and files. When the driver is gone,
however it went, the socket closes, and the worker ends at once.
"""

import json
import os
import queue
import sys
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from normscope.allocator import keep_large_blocks
from normscope.errors import NormscopeError, one_line
from normscope.sweep.run import run
from normscope.train.config import RunConfig


def serve(connection: Connection) -> None:
    """Carry out runs until the connection closes."""
    keep_large_blocks()
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        config = RunConfig.from_mapping(task.pop("config"))
        try:
            files = run(config, on_epoch=lambda epochs: _send(connection, epochs=epochs), **task)
        except NormscopeError as error:
            _send(connection, error=str(error), kind=type(error).__name__)
        except Exception as error:
            _send(connection, error=f"bug in normscope: {type(error).__name__}: {one_line(error)}", kind="RunFailed")
        else:
            _send(connection, outcome=files.outcome)
            connection.send_bytes(files.result)
            connection.send_bytes(files.weights)


def _listen(connection: Connection, tasks: queue.SimpleQueue[dict[str, Any]]) -> None:
    while True:
        try:
            tasks.put(json.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)  # whatever the main thread is in: its checkpoint is whole at any moment


def _send(connection: Connection, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
