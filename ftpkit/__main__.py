"""``python -m ftpkit``."""

from ftpkit.cli import main

if __name__ == "__main__":
    main(prog_name="ftpkit")
