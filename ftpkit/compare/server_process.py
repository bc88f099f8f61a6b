"""The server process of a comparison, with a temporary directory.

It replies to each line of standard input with its CPU time, and removes the directory at the end.
"""

import json
import sys
import time
from tempfile import TemporaryDirectory

from ftpkit.lab.child import reply
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
        reply({"host": server.address.host, "port": server.address.port})
        for _ in sys.stdin:
            reply({"cpu_s": time.process_time()})
        server.stop(grace_s=0.0)
