"""From the executor to the broker: one publisher for each kind of broker."""
