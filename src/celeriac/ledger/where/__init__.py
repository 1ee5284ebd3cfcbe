"""The conditions of `--where`: which tasks of a run are meant.

    text ─► parser ─► tree ─► conditions of SQL, which leave out most other rows
                         └──► values of a row ─► whether it matches

`tree`, `parser` and `quantities` are pure: they know no ledger.
"""
