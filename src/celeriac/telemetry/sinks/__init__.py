"""Hand what a process measures to the systems that watch it. Each sink needs libraries of its own.

    Telemetry.read ─► prometheus: the text that a Prometheus fetches
                  ├─► statsd: datagrams, every second
                  └─► opentelemetry: metrics and traces over OTLP/HTTP

Nothing here is imported unless the user asks for it. `celeriac.sink_thread` calls a sink in a thread of its own.
"""
