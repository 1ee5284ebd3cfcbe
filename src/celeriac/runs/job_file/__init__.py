"""Read job files: JSON in any layout, a table (CSV, TSV), or one shell command a line.

    read_jobs      read a whole file: return all tasks, or raise all problems
    read_whole     the same, but the tasks of plain jobs are built when they are needed
    stream_jobs    read one line at a time, while another program is still writing the file
    read_arguments make jobs of a template and values of the command line

    With a template, the rows, objects or lines of a file are values, of which it makes commands.

    bytes ─► head ─► formats ─┬─► lines ─► json_lines, table or text ─┬─► fields.JobChecker ─► Task, or each Problem
                              └─► json_document ──────────────────────┘

In: a file. Out: tasks and problems. Imports `executor`, `config`, `task` and `errors`.
"""

from celeriac.runs.job_file.fields import FIELDS
from celeriac.runs.job_file.formats import FORMATS
from celeriac.runs.job_file.jobs import Jobs, PlainJobs
from celeriac.runs.job_file.lines import MAX_LINE
from celeriac.runs.job_file.problem import BadJobs, Problem
from celeriac.runs.job_file.reading import line_numbers, read_arguments, read_jobs, read_whole, stream_jobs

__all__ = [
    "FIELDS",
    "FORMATS",
    "MAX_LINE",
    "BadJobs",
    "Jobs",
    "PlainJobs",
    "Problem",
    "line_numbers",
    "read_arguments",
    "read_jobs",
    "read_whole",
    "stream_jobs",
]
