"""The parts that connect one executor to its Celery workers, composed.

cluster          `Cluster`: workers of a broker, on any machines
local/           `LocalCluster`: one worker in this process
worker_registry  the live workers and their capacity; worker_monitor queries them
lost_tasks/      finds tasks that were sent and are lost
revoker          revokes tasks that are in flight
orphans          finds and revokes tasks that no executor follows
drain            follows workers that drain
preflight        checks broker and result backend before a run
status           the queues and workers of a broker; status_parts has the values
redis_status     the same from Redis alone, without Celery, for a command that must answer at once

A URL or a Celery app comes in, with a `Config`. A `CeleryExecutor` with all its parts goes out. The folder may import
everything but `cli`, `airflow` and `runs`.
"""
