"""Run the command line: `python -m celeriac`."""

import os
import signal
import sys

from celeriac.shortages import describe_shortage, is_shortage

CANNOT_RUN = 2  # exit status

HANDLES_INTERRUPTS = signal.getsignal(signal.SIGINT) is signal.default_int_handler

if HANDLES_INTERRUPTS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


def exit_on_shortage(error: BaseException) -> None:
    """Exit with one line if the system lacks descriptors, processes or memory for this program."""
    if is_shortage(error):
        if sys.stderr is not None:
            sys.stderr.write(f"celeriac: it cannot run: {describe_shortage(error)}; raise the limit: see ulimit -a\n")
            sys.stderr.flush()
        os._exit(CANNOT_RUN)  # at its usual end Python ends threads, for which it may have to load a library


try:
    from celeriac.cli import main as program
except Exception as error:
    exit_on_shortage(error)
    raise


def main() -> None:
    """Run the command of the arguments, and exit with its status."""
    if HANDLES_INTERRUPTS:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        program(prog_name="celeriac")
    except Exception as error:
        exit_on_shortage(error)
        raise
    finally:
        if HANDLES_INTERRUPTS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the same while the interpreter ends


if __name__ == "__main__":
    main()
