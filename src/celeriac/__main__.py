"""Run the command line: `python -m celeriac`."""

import signal

HANDLES_INTERRUPTS = signal.getsignal(signal.SIGINT) is signal.default_int_handler

if HANDLES_INTERRUPTS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback

from celeriac.cli import main as program  # noqa: E402


def main() -> None:
    """Run the command of the arguments, and exit with its status."""
    if HANDLES_INTERRUPTS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program(prog_name="celeriac")
    finally:
        if HANDLES_INTERRUPTS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the same while the interpreter ends


if __name__ == "__main__":
    main()
