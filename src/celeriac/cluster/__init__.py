"""Everything behind one executor: the way to the workers and back, put together.

cluster          `Cluster`: workers of a broker, on any machines
local/           `LocalCluster`: one worker in this process
worker_registry  the live workers and their capacity; worker_monitor asks for them
lost_tasks/      finds tasks that were sent and are lost
revoker          revokes tasks that are in flight
orphans          finds and revokes tasks that no executor follows
drain            follows workers that drain
status           the queues and workers of a broker

In come a URL or a Celery app, and a `Config`; out comes a `CeleryExecutor` with all its parts. The folder may import
everything but `cli`, `airflow` and `runs`.
"""
