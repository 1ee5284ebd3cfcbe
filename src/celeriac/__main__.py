"""Run the command line: `python -m celeriac`."""

import gc
import os
import signal
import sys

from celeriac.shortages import describe_shortage, is_shortage

CANNOT_RUN = 2  # exit status

HANDLES_INTERRUPTS = signal.getsignal(signal.SIGINT) is signal.default_int_handler

gc.set_threshold(50_000)  # objects; with Python's default of 700, collections take a tenth of the start

if HANDLES_INTERRUPTS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the program without a traceback


MAY_RUN_HERE = sys.argv[1:2] == ["run"]

if MAY_RUN_HERE:
    from celeriac.worker.supervisor_start import start_early

    start_early(sys.argv[1:])  # it loads while this process does


def discard_supervisor() -> None:
    """End the supervisor that was started early, if no run has taken it."""
    if MAY_RUN_HERE:
        from celeriac.worker.supervisor_start import discard_early

        discard_early()


def exit_on_shortage(error: BaseException) -> None:
    """Exit with one line if the system lacks descriptors, processes or memory for this program."""
    if is_shortage(error):
        discard_supervisor()
        if sys.stderr is not None:
            sys.stderr.write(f"celeriac: it cannot run: {describe_shortage(error)}; raise the limit: see ulimit -a\n")
            sys.stderr.flush()
        os._exit(CANNOT_RUN)  # at its usual end Python ends threads, for which it may have to load a library


def exit_at_once(code: object) -> None:
    """Exit with a status as Python does, but leave the memory to the system: to free it takes a tenth of a short run.

    Return if Python must end the program: if another thread is running, or the status is a text to print.
    """
    import atexit
    import threading

    if not isinstance(code, int) or threading.active_count() > 1:
        return
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except Exception:  # noqa: BLE001 - Python reports it when it ends the program
        return
    os._exit(code & 0xFF)


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
    except SystemExit as end:
        discard_supervisor()
        exit_at_once(end.code)
        raise
    except KeyboardInterrupt:  # before a command handles it, or after
        discard_supervisor()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception as error:
        exit_on_shortage(error)
        raise
    finally:
        discard_supervisor()
        if HANDLES_INTERRUPTS:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # the same while the interpreter ends


if __name__ == "__main__":
    main()
