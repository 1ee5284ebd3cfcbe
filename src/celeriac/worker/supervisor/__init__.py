"""A small process that starts commands for the worker, watches them, and leaves no process behind.

    worker ── socket: request ─► WorkerConnection ─► Command: a process group of its own
           ◄─ report ─────────────────────┘           │ └─ stdout and stderr: Capture ─► files, up to a cap
                                                      └─ timeout: TERM, grace, KILL; leftovers; orphans

It is a separate process for three reasons. It survives a worker that is killed with SIGKILL, and then ends the
commands. It is small, so it starts programs cheaply. It does not share the worker's interpreter lock. It also ends the
commands of a worker that is frozen or cut off, before others declare that worker dead and run its tasks again.

It imports only the standard library. An interpreter that skips site-packages calls `loop.main` with the descriptor of
the control socket. On that socket, "+" brings the descriptor of one more connection, and "~" is a heartbeat: the
worker's lease was good at the time that follows, by the monotonic clock. After the first heartbeat, a silence that is
too long ends all commands. "z" stops the processes of all commands with SIGSTOP, and the clocks of their timeouts; "f"
lets both go on. The end of the control socket, or SIGTERM, ends all commands and then the supervisor.

With a journal, the supervisor records each command before it starts it, and before it reports it: see `journal`.

A connection carries one command at a time, in frames: four bytes of length, then JSON. `{"run": …}` gets one report as
its reply. `{"stop": "revoked", "id": …}` ends the command, and so does the end of the connection.
"""
