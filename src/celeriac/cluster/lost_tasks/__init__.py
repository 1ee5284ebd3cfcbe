"""Find lost tasks: sent, not ended, and either in no queue and on no worker, or on a dead worker.

scan(tasks) ─► Scan, in a thread ─► leases: what live workers run and hold
                                 ─► claims: those of dead workers are fenced
                                 ─► broker: its queues, and the messages that were delivered and not acknowledged
                                 ─► workers without a lease: what they hold
take_lost() ◄─ tasks that a dead worker had claimed, and tasks that were not found twice

detector      the thread that makes the requests a scan asks for, and chooses the broker's part
scan          decides what to ask next, and which tasks are lost; without I/O
claim_check   reads the claims, and fences those of dead workers
redis_queues  reads the lists of the queues and the hash of unacknowledged messages
amqp_queues   counts messages and consumers: RabbitMQ does not list its messages

The executor's tasks and the states of workers (`worker_monitor`, leases) come in. `LostTask`s go out. The folder may
import `celeriac.broker`, `celeriac.backend.claims` and `celeriac.executor.interfaces`.
"""
