"""Random environments for `celeriac`: limits, streams, terminals, users, file systems, locales, sizes, signals.

    plan ─► run ─► Outcome ─► judge

    plan, oddities   what to run, and where: drawn from a seed, without a look at the machine
    run              carries out one plan
    judge            says what was wrong with an outcome

One line repeats a run: see `plan.replay_line`.
"""
