"""Run the real decisions of executors and workers in one process, under a virtual clock and a bad network.

seed ─► faults ─► world: threads that take turns, and a clock that jumps to the next event
                    ├─► executors: celeriac.executor, the failure detector, the search for lost tasks
                    ├─► workers: celeriac.worker.task, the lease, the claims, the supervisor's patience
                    └─► servers in memory: broker, result backend, ledger
                 ─► each step is checked against the invariants ─► a history without a violation, or a story

world       threads as greenlets, processes with their own clocks, the order of events
primitives  what stands in for `threading`, `queue` and `time` while a history runs
network     what a request to a server meets on its way: delay, loss, refusal, partition
servers     broker, result backend and ledger, with the semantics of the real ones
worker      a worker process
supervisor  its supervisor, and the commands; `command_runner` is the worker's client of it
scheduler   a process with an executor
parts       its executor, with all that it reads and writes
clients     what the executor sees of the broker, the result backend and the ledger
cluster     what it sees of the workers and the queues
owners      several `serve` that share a ledger, in a part of the histories, in the place of the executor
owned_ledger  that ledger, and `owner_watch`, which checks it after each transaction
jobs        the tasks, and what their commands do
failover    a replica that lacks the last writes of the broker or the store
faults      what is killed, frozen, stopped, cut and drained, also in the middle of a request; `owner_faults` of owners
invariants  what must hold at each step
features    what a share of the histories uses: `limits` of keys and rates (`places`), `needs`, `times`, `pauses`
history     one history: the parts, the faults, the end
runner      many histories in several processes, and the shrinking of one with a violation
decisions   which branches of the pure decisions were taken
changes     planted changes of the code that break the protocol
teeth       which histories find each of them

`python -m tests.simulation --help` runs many seeds, `python -m tests.simulation.teeth` tries the changes.
The same seed makes the same history, bit for bit.
"""
