"""The exit statuses that several commands share."""

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
