"""Examine a deployment: each check looks at one thing, and says in one line what is wrong and what to do.

    settings ─► subjects_of ─┬─► machine, settings, ledger, state      no server is asked
                             ├─► broker, result backend, ledger server  one connection each, beside each other
                             └─► workers                                their leases and the queues
    subjects ─► examine ─► Findings

A *subject* is read once, into facts; its checks decide from them. A subject that hangs is given up at a deadline, and a
bug in one check stops no other one.
"""

from __future__ import annotations
