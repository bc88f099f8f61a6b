"""``python -m ftpkit``, and the command ``ftpkit``."""

import sys


def run() -> None:
    """Run the command line of this process, and exit."""
    try:
        from ftpkit.cli import main
    except KeyboardInterrupt:
        # Loading takes long enough for a Ctrl-C, and what reports one is not there yet.
        sys.stderr.write("ftpkit: interrupted\n")
        sys.exit(130)
    main(prog_name="ftpkit")


if __name__ == "__main__":
    run()
