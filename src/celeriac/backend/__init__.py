"""The result backend: the results, claims and leases that workers store.

results      reads and deletes results, and follows which tasks have changed
claims       the right to start a task, the workers' leases, and the failure detector
refused      the newest messages that workers have refused
report       the report of a command -> `Result`
kind         which kind of result backend an app has
redis_client  the client of Redis that all of them use
per_process  connections that a child process does not share with its parent

In: a Celery app and a timeout. Out: a `ResultReader` for the executor, and `Claims` for workers and executors. It may
import `broker` and everything below it."""
