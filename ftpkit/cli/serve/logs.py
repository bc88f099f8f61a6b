"""The format of the server's log: one line per record, as text or as JSON."""

import logging
import os
import sys
import traceback
from datetime import datetime

from ftpkit.cli.format import escaped, json_line, quoted


def log_to_stderr(*, level: int, as_json: bool) -> None:
    """Log records of ftpkit from ``level`` on to stderr."""
    # A closed stderr must not cause tracebacks.
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logger = logging.getLogger("ftpkit")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class TextFormatter(logging.Formatter):
    """``2026-11-06 14:03:22 transfer name=big.iso bytes=4096 outcome=ok``.

    Ambiguous values are JSON strings, so that a line can be parsed.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = f"{datetime.fromtimestamp(record.created):%Y-%m-%d %H:%M:%S}"
        fields = [f"{key}={_text(value)}" for key, value in _fields(record).items()]
        return " ".join([when, escaped(record.getMessage()), *fields])


class JsonFormatter(logging.Formatter):
    """``{"time": "2026-11-06T14:03:22.123456+00:00", "level": "info", "event": "transfer", …}``."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone().isoformat()
        head = {"time": when, "level": record.levelname.lower()}
        if hasattr(record, "fields"):
            what = {"event": record.getMessage()}
        else:
            what = {"event": "notice", "message": record.getMessage()}
        return json_line(head | what | _fields(record))


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(getattr(record, "fields", {}))
    if (number := str(record.processName)).isdecimal():
        fields["worker"] = int(number)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        # One line per record: only the locations of the traceback.
        steps = traceback.extract_tb(error.__traceback__)
        fields["error"] = f"{type(error).__name__}: {error}"
        fields["where"] = ", ".join(
            f"{os.path.basename(step.filename)}:{step.lineno} {step.name}" for step in steps
        )
    return fields


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    text = str(value)
    plain = text.isprintable() and text and not any(c in ' "=,\\' for c in text)
    return text if plain else quoted(text)
