"""A cluster in this process, for one machine: there is nothing to install and nothing to start.

    publish ─► MemoryBroker ─► OnDemandWorker ─► MemoryClaims ─► SupervisorPool ─► two supervisor processes ─► commands
    read    ◄─ ResultStore  ◄─ Celery's tracer ◄─┘

    local_cluster     `LocalCluster`, the public class: it connects the parts
    engine            the executor's `ResultReader` and `Revoker`: they let the worker work
    transport         broker in memory                    worker            Celery worker without threads
    result_store      result backend in memory            supervisor_pool   starts commands and collects their reports
    journal           what the supervisors of a killed process recorded

Tasks come in from the executor, results go out to it. Imports `worker`, `backend`, `control`, `broker`, `executor` and
the packages below them.

All of this runs in the executor's thread: the worker works while the executor asks for results or waits for them. The
commands run in parallel, under the supervisors. That is faster than a pool of threads, which would hand over the
interpreter lock at every step of every task. And there is no thread that could end unnoticed.
"""

from celeriac.cluster.local.local_cluster import LocalCluster

__all__ = ["LocalCluster"]
