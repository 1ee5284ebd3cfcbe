"""A page about one run, in one file: `celeriac report`.

    ledger ─► last_attempts, earlier_attempts ─► Gathered ─► charts ─► page.html

`gathered` keeps a bounded part of what it sees, however many tasks the run has. `chart` and `axis` place bars and
columns. `page` fills the template, which escapes each text.
"""
