"""A small process that starts commands for the worker, and leaves nothing behind.

    worker ── lane (socket): request ─► Lane ─► Command: a process group of its own
           ◄─ report ─────────────────────┘      │ └─ stdout and stderr: Capture ─► files, up to a cap
                                                 └─ timeout: TERM, grace, KILL; leftovers; orphans

Why a process of its own: it outlives a worker that is killed with -9, and sees that by the end of its lanes; it is
small, so starting a process from it is cheap; and it does not share the worker's interpreter lock. It also sees when
the worker falls silent, frozen or cut off: others take it for dead then, and what it runs will be run elsewhere.

It imports the standard library alone, started by an interpreter that skips site-packages: `loop.main` with the
descriptor of its control socket. There "+" brings the descriptor of one more lane, and "~" says that the worker's
lease is good: once that was said and then is not for a while, what runs is ended. The end of the control socket, or
SIGTERM, is the order to end everything and go.

With a journal it writes down each command before it starts it and before it reports it: see `journal`.

A lane carries one command at a time, as frames: four bytes of length, then JSON. `{"run": …}` is answered by one
report; `{"stop": "revoked", "id": …}` ends what runs; the end of a lane does so too.
"""
