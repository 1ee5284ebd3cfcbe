"""From the result backend to the executor: one reader for each kind of backend."""
