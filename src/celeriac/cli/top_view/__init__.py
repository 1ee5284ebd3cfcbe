"""The application of `celeriac top`, drawn by textual.

    keys ─► screens ─► CallThread ─► Source ─► the overview, the ledger, executors and workers
              └─ confirm ─► actions

app              the application; it starts with the overview
overview_screen  queues, workers and runs
run_screen       the tasks of a run, page by page
task_screen      one task: its life, what it waits for, the end of its output
base_screen      the part that all screens share
list_table       a table that fits its width, keeps its cursor, and is sorted by a key
dialogs          a question before each action, and the input of a filter
source           all reads and actions, without textual
call_thread      the thread that makes these calls, one after another

Texts of tasks and workers are hostile: they are shown as `Text`, never as markup.
"""
