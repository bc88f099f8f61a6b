"""The process of a server that is there for one comparison, with a directory of its own.

It answers each line with the processor time that it has taken, and leaves nothing
when its standard input ends.
"""

import json
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any

from ftpkit.server import Server
from ftpkit.server.limits import Limits


def main(job: str) -> None:
    """Run a server; ``job`` is a JSON object of its arguments, with its limits as another."""
    settings = json.loads(job)
    limits = Limits(**settings.pop("limits", {}))
    with (
        TemporaryDirectory(prefix="ftpkit-compare-") as root,
        Server(root, port=0, limits=limits, **settings) as server,
    ):
        _say({"host": server.address.host, "port": server.address.port})
        for _ in sys.stdin:
            _say({"cpu_s": time.process_time()})
        server.stop(grace_s=0.0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
