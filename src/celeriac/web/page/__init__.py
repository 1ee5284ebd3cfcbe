"""The web page: HTML for people, drawn on the server. It works without JavaScript; with it, it is live.

    request ─► a page function ─► values ─► a template ─► HTML        (`overview`, `runs`, `run`, `task`)
    poller  ─► the same function, for all viewers of a page ─► its live parts as server-sent events   (`live`)
    form    ─► a change, by an operator ─► back to the page           (`actions`)

All text that comes from a ledger or a broker is hostile: templates escape it, and `display` shows what it hides.
"""
