"""A cluster in this process, for one machine: there is nothing to install and nothing to start.

    publish ─► LocalWorker ─► MemoryClaims ─► SupervisorPool ─► two supervisor processes ─► commands
    read    ◄─ ResultStore ◄─ LocalWorker ◄──────────┘

    local_cluster     `LocalCluster`, the public class: it connects the parts
    engine            the executor's `ResultReader` and `Revoker`: its calls run the worker
    worker            starts what is published            supervisor_pool   starts commands and collects their reports
    result_store      results until they are read
    journal           what the supervisors of a killed process recorded

The executor's tasks come in, and their results go out. The folder may import `worker`, `backend`, `control`, `broker`,
`executor` and what these may import, but nothing that imports Celery: loading it takes as long as the rest of a short
run.

All of this runs in the executor's thread: the worker runs while the executor reads results or waits for them. The
commands run in parallel, under the supervisors. That is faster than a pool of threads, in which the interpreter
lock would change hands at every step of every task. And no thread can end unnoticed.
"""

from celeriac.cluster.local.local_cluster import LocalCluster

__all__ = ["LocalCluster"]
