"""The command `precision-lab`, from its first moment; also ``python -m precision_lab``."""

from __future__ import annotations

import signal

from precision_lab.support.ending import stopped, terminable


def main() -> None:
    """Run the command line; the entry point of the console script."""
    try:
        with terminable():
            from precision_lab.cli import main as run  # takes as long as it takes to change one's mind

            run()
    except KeyboardInterrupt as why:
        stopped(why)
    finally:  # what is left is Python's own end, and bounded
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
