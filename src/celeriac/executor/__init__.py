"""The executor: decides which task runs when, and what follows from each result. No I/O, no threads, no libraries.

Of libraries it knows msgspec alone, for the structs of its records.

| part of the work        | modules                                                                        |
|-------------------------|--------------------------------------------------------------------------------|
| the public class        | executor, stats, parts (composition)                                           |
| accept and order tasks  | intake, priority_queue, dependencies, slots                                    |
| send                    | dispatcher, publish_retries                                                    |
| follow tasks in flight  | tracker, result_handler, lost_task_schedule, revocation, recovery              |
| apply each transition   | lifecycle, ledger_writer, event_buffer, event_reader, history                  |
| answer requests         | explain, requests, control_handler                                             |
| shared decisions        | backoff, circuit_breaker                                                       |
| do I/O                  | interfaces: everything that does I/O is behind one of them                     |

Tasks, time and results come in. Events, and calls of the interfaces, go out. This folder may import `celeriac.config`,
`celeriac.task` and `celeriac.errors`.
"""
