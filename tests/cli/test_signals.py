import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import WAIT_S

# The start of the wait cannot be observed; a signal that arrives before it must be seen, too.
TAKEN_BY_A_THREAD = """
import signal, sys, threading
from ftpkit.cli.serve.signals import handled_signals

def take():
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_code.co_name != "next_signal":
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

with handled_signals() as next_signal:
    threading.Thread(target=take).start()
    print(int(next_signal()))
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no thread can be sent a signal")
def test_a_signal_ends_the_wait_whichever_thread_the_system_gave_it_to() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAKEN_BY_A_THREAD],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    assert done.stdout == f"{int(signal.SIGTERM)}\n"
