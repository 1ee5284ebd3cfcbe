"""The command line: words and pictures. What it asks for is done elsewhere.

Commands import what they need when they run, so that `celeriac --help` is there at once.
"""

from __future__ import annotations

import gc

import click

from celeriac import __version__
from celeriac.cli.broker import broker
from celeriac.cli.cancel import cancel
from celeriac.cli.config import config
from celeriac.cli.drain import drain
from celeriac.cli.explain import explain
from celeriac.cli.logs import logs
from celeriac.cli.prune import prune
from celeriac.cli.retry import retry
from celeriac.cli.run import run
from celeriac.cli.runs import runs
from celeriac.cli.serve import serve
from celeriac.cli.show import show
from celeriac.cli.status import status
from celeriac.cli.submit import submit
from celeriac.cli.worker import worker

PLACE_TO_REPORT = "the issue tracker of Celeriac"
OBJECTS_BETWEEN_COLLECTIONS = 50_000  # 700 is Python's: a tenth of a start would go into looking for garbage


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="celeriac", message="%(prog)s %(version)s")
def main() -> None:
    """Run thousands of prioritised commands on Celery workers, and know how each one ended."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)


main.add_command(run)
main.add_command(submit)
main.add_command(serve)
main.add_command(runs)
main.add_command(show)
main.add_command(logs)
main.add_command(retry)
main.add_command(prune)
main.add_command(worker)
main.add_command(status)
main.add_command(explain)
main.add_command(cancel)
main.add_command(drain)
main.add_command(broker)
main.add_command(config)
