"""Results: from the result backend to the executor.

open         chooses the reader for an app
reader       what all readers share
redis, database, one_by_one    one module for each kind of backend
decode       stored value -> `Result`
fetcher      calls the backend, with a deadline
change_feed  ids of changed tasks, as they change; from the Redis channel or from task events
cleaner      deletes results that are no longer needed
"""

from celeriac.backend.results.open import results_for as results_for

__all__ = ["results_for"]
