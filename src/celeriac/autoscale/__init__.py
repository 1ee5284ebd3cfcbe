"""Start workers as allocations of a cluster's scheduler, as many as the waiting tasks need.

broker, leases ─┐
executors ──────┴► load.Load ─► decision.decide ─► submit, cancel ─► slurm, pbs
scheduler ──────► Allocation ──┘

load          the tasks that wait, and the workers that are there
demand        reads it from the broker and from the executors
allocation    an allocation, and what a scheduler must be able to do
decision      how many allocations to submit and to cancel: no I/O
program       runs a program of the scheduler
slurm, pbs    the two schedulers
job           the script of an allocation, and the private file of its worker
autoscaler    the loop
"""
