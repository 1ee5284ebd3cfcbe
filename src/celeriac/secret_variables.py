"""The environment variables that hold secrets of Celeriac. Commands do not inherit them. It imports nothing."""

URL_SETTINGS = ("broker", "backend", "ledger", "notify")
SUFFIX = "_file"
INHERITED = ("signing_key", "web_token", "on_end", *URL_SETTINGS)
VARIABLES = frozenset(f"CELERIAC_{name}{suffix}".upper() for name in INHERITED for suffix in ("", SUFFIX))
"""Variables with secrets, or with files of secrets, that a worker does not pass on to its commands.

A command that starts a run would also do what `on_end` says."""
