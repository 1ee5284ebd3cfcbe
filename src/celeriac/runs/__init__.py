"""Runs: a file of jobs, from its lines to the end of its last task; and the service that runs submitted files.

    job_file         read job files               launch           everything behind `celeriac run` and `retry`
    standard_input   read jobs from a pipe        record           create or resume the run in the ledger
    run              drive one run                service          everything behind `celeriac serve`
    cluster          the protocol of a cluster    owner_session    the decisions of a service

Job files, options and submitted runs come in; totals, events and log lines go out. Imports `worker`, `ledger`,
`executor` and the packages below them. A cluster comes from the caller, so that its libraries are loaded late.
"""
