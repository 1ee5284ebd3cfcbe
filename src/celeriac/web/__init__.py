"""The web server: health probes, the REST interface and the page, for a ledger and for a broker.

    browser, curl, Prometheus ─► Gate ─► routes ─► the ledger, the leases, the control channel
                                  │
                                  └ Host, token, role, Origin, CSRF token: see `access`

A server runs in one thread beside its process, with an event loop of its own. It reads what other processes write to
the ledger and to the servers, and never the memory of an executor, so it cannot slow a heartbeat.

In: `runs`, `json_types` and everything below. Only `cli` imports this folder, and only to start a server: it needs the
libraries of `celeriac[web]`.
"""
