"""The worker: it receives messages from the broker, runs their commands, and stores the outcomes.

start              `celeriac worker`: settings -> a running worker; `app` makes its Celery app
build, parts       build and run a worker, for `celeriac worker` and `airflow celeriac worker`
consumer           Celery's worker and consumer with our additions; `acks`, `prefetch`, `watchdog`, `pool` belong to it
task               the task of `celeriac worker`: verify the signature, claim, run, log
execute_command    the task itself, for any Celery worker
command            what a supervisor is asked to run, and what its report means; `outcome` and `output` belong to it
lease_manager      claims and the lease; `lease_state_machine` decides, `probe` checks the store
shutdown           the end of a worker; `shutdown_steps` decides
pool_control       reaches running tasks, in threads or in children
runner             runs commands through the supervisor; `supervisor_client` starts it, `leftovers` cleans up after it
supervisor         the process that starts commands, watches them and ends them
celery_internals   private names of Celery's worker

In: messages, signals, remote control. Out: outcomes, claims and leases in the result backend, log lines.
It may import `backend`, `broker`, `config`, `task` and `errors`, and the pure parts of `executor`. `supervisor` imports
the standard library alone.
"""
