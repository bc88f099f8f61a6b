"""What the server logs, as events to wait for."""

import contextlib
import logging
import queue
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 30.0


class Log(logging.Handler):
    """Collects the records of the server's log, and waits for them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put((record.getMessage(), getattr(record, "fields", {})))

    def wait_for(self, message: str, **fields: Any) -> dict[str, Any]:
        """Return the fields of the next line that has ``message`` and these ``fields``."""
        while True:
            found, values = self._lines.get(timeout=TIMEOUT_S)
            if found == message and fields.items() <= values.items():
                return values

    def so_far(self, message: str) -> list[dict[str, Any]]:
        """Return the fields of all records with ``message`` that were not waited for."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                found, values = self._lines.get_nowait()
                if found == message:
                    lines.append(values)
        return lines


@contextlib.contextmanager
def server_log() -> Iterator[Log]:
    """Listen to the server's log until the block ends."""
    handler, logger = Log(), logging.getLogger("ftpkit.server")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
