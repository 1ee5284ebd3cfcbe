"""Runs: a file of jobs, from its lines to the end of its last task; and the service that runs submitted files.

    job_file         read job files               launch           everything behind `celeriac run` and `retry`
    standard_input   read jobs from a pipe        record           create or resume the run in the ledger
    run              drive one run                service          everything behind `celeriac serve`
    cluster          the protocol of a cluster    owner_session    the decisions of a service
    old_runs         remove them from the ledger  ledger_limits    the same in a service, once a day
    options          the options of both          inputs           the folder and the options that a run remembers

In: job files, options and submitted runs. Out: totals, events and log lines. Imports `worker`, `ledger`, `executor` and
the packages below them. The caller provides the cluster, so that its libraries are loaded late.
"""
