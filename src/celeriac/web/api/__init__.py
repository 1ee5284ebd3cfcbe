"""The REST interface, `/api/v1`: the same objects as `--json` prints, and an OpenAPI document drawn from the code."""
