"""Run the command line: `python -m celeriac`."""

from celeriac.cli import main

if __name__ == "__main__":
    main(prog_name="celeriac")
