"""The other side of the broker: a message becomes a command, a command becomes a result.

execute_command   the Celery task: one message, one command, one report
output            where it keeps what commands write
runner            asks the supervisor to run a command, and waits for its report
supervisor        a small process of its own: starts commands, watches them, and ends what must end
"""
