"""A worker process of this machine: `python -m normscope.sweeps.engines.worker DESCRIPTOR`, started by `local`.

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

from normscope.errors import NormscopeError
from normscope.runtime.allocator import keep_large_blocks
from normscope.sweeps.run import attempt


def serve(connection: Connection) -> None:
    """Carry out runs until the connection closes."""
    keep_large_blocks()
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    while True:
        task = tasks.get()
        done = attempt(task.pop("config"), on_epoch=lambda epochs: _send(connection, epochs=epochs), **task)
        if isinstance(done, NormscopeError):
            _send(connection, error=str(done), kind=type(done).__name__)
        else:
            _send(connection, outcome=done.outcome)
            connection.send_bytes(done.result)
            connection.send_bytes(done.weights)


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
