"""The SQL for SQLite of `celeriac.ledger.statements`, and of the tables of `celeriac.ledger.schema`.

`make docs` generates this module; `make check` compares them.
"""

from celeriac.ledger.statement import Statement

VERSION = 1

SELECT_VERSION = Statement("SELECT_VERSION", "SELECT celeriac_ledger.version FROM celeriac_ledger", ())
INSERT_VERSION = Statement("INSERT_VERSION", "INSERT INTO celeriac_ledger (version) VALUES (?)", ("version",))
TOUCH_LEDGER = Statement("TOUCH_LEDGER", "UPDATE celeriac_ledger SET version=celeriac_ledger.version", ())
INSERT_OWNER = Statement(
    "INSERT_OWNER",
    "INSERT INTO celeriac_owner (host, boot_id, pid, process_started, until) VALUES (?, ?, ?, ?, ?)",
    ("host", "boot_id", "pid", "process_started", "until"),
)
RENEW_LEASE = Statement(
    "RENEW_LEASE", "UPDATE celeriac_owner SET until=? WHERE celeriac_owner.id = ?", ("lease_end", "owner_id")
)
SELECT_OWNER = Statement(
    "SELECT_OWNER",
    "SELECT celeriac_owner.id, celeriac_owner.host, celeriac_owner.boot_id, celeriac_owner.pid, celeriac_owner.process_started, celeriac_owner.until FROM celeriac_owner WHERE celeriac_owner.id = ?",
    ("owner_id",),
)
DELETE_OWNER = Statement("DELETE_OWNER", "DELETE FROM celeriac_owner WHERE celeriac_owner.id = ?", ("owner_id",))
SELECT_OWNER_OF_RUN = Statement(
    "SELECT_OWNER_OF_RUN", "SELECT celeriac_run.owner FROM celeriac_run WHERE celeriac_run.id = ?", ("of_run",)
)
TAKE_RUN = Statement(
    "TAKE_RUN",
    "UPDATE celeriac_run SET ended=NULL, owner=?, counts=NULL WHERE celeriac_run.id = ?",
    ("owner_id", "of_run"),
)
RELEASE_RUNS = Statement(
    "RELEASE_RUNS", "UPDATE celeriac_run SET owner=NULL WHERE celeriac_run.owner = ?", ("owner_id",)
)
SELECT_SIMILAR_NAMES = Statement(
    "SELECT_SIMILAR_NAMES",
    "SELECT celeriac_run.name FROM celeriac_run WHERE celeriac_run.name LIKE ? ESCAPE '/'",
    ("pattern",),
)
SELECT_RUN_OF_NAME = Statement(
    "SELECT_RUN_OF_NAME", "SELECT celeriac_run.id FROM celeriac_run WHERE celeriac_run.name = ?", ("wanted",)
)
HAS_OLDER_RUN = Statement(
    "HAS_OLDER_RUN",
    "SELECT EXISTS (SELECT * FROM celeriac_run WHERE celeriac_run.created < ? AND celeriac_run.id != ?) AS anon_1",
    ("before", "of_run"),
)
INSERT_RUN = Statement(
    "INSERT_RUN",
    "INSERT INTO celeriac_run (name, source, submitted, created, number, acknowledged, content, total) VALUES (?, ?, 0, ?, 0, 0, ?, ?)",
    ("name", "source", "created", "content", "total"),
)
SET_OUTPUT = Statement("SET_OUTPUT", "UPDATE celeriac_run SET output=? WHERE celeriac_run.id = ?", ("output", "of_run"))
SELECT_TOTAL = Statement(
    "SELECT_TOTAL", "SELECT celeriac_run.total FROM celeriac_run WHERE celeriac_run.id = ?", ("of_run",)
)
SELECT_NUMBERS = Statement(
    "SELECT_NUMBERS",
    "SELECT celeriac_run.number, celeriac_run.acknowledged FROM celeriac_run WHERE celeriac_run.id = ?",
    ("of_run",),
)
SET_NUMBERS = Statement(
    "SET_NUMBERS",
    "UPDATE celeriac_run SET number=?, acknowledged=? WHERE celeriac_run.id = ?",
    ("number", "acknowledged", "of_run"),
)
CLOSE_RUN = Statement(
    "CLOSE_RUN",
    "UPDATE celeriac_run SET ended=?, owner=NULL, counts=? WHERE celeriac_run.id = ? AND celeriac_run.owner = ?",
    ("ended", "counts", "of_run", "owner_id"),
)
SELECT_INPUTS = Statement(
    "SELECT_INPUTS", "SELECT celeriac_input.inputs FROM celeriac_input WHERE celeriac_input.run = ?", ("of_run",)
)
SELECT_LAST_PLACE = Statement(
    "SELECT_LAST_PLACE",
    "SELECT max(celeriac_task.place) AS max_1 FROM celeriac_task WHERE celeriac_task.run = ?",
    ("of_run",),
)
SELECT_UNFINISHED = Statement(
    "SELECT_UNFINISHED",
    "SELECT celeriac_task.run, celeriac_task.\"key\", celeriac_task.place, celeriac_task.id, celeriac_task.digest, celeriac_task.payload, celeriac_task.priority, celeriac_task.arrived, celeriac_task.state, celeriac_task.attempt, celeriac_task.lost, celeriac_task.moved, celeriac_task.not_before, celeriac_task.revoking, celeriac_task.reason, celeriac_task.detail, celeriac_task.execution FROM celeriac_task WHERE celeriac_task.run = ? AND celeriac_task.state IN ('waiting', 'publishing', 'queued', 'running') ORDER BY celeriac_task.place",
    ("of_run",),
)
HAS_UNFINISHED = Statement(
    "HAS_UNFINISHED",
    "SELECT EXISTS (SELECT * FROM celeriac_task WHERE celeriac_task.run = ? AND celeriac_task.state IN ('waiting', 'publishing', 'queued', 'running')) AS anon_1",
    ("of_run",),
)
COUNT_TASKS = Statement(
    "COUNT_TASKS",
    "SELECT celeriac_task.state, CASE WHEN (celeriac_task.state = 'revoked') THEN CASE WHEN (celeriac_task.execution LIKE '%\"started\":%' OR celeriac_task.attempt > 1) THEN 1 ELSE 0 END ELSE 1 END AS ran, count(*) AS number, max(celeriac_task.moved) AS max_1 FROM celeriac_task WHERE celeriac_task.run = ? GROUP BY celeriac_task.state, ran",
    ("of_run",),
)
UPDATE_TASK_STATE = Statement(
    "UPDATE_TASK_STATE",
    'UPDATE celeriac_task SET priority=?, state=?, attempt=?, lost=?, moved=?, not_before=?, revoking=?, reason=?, detail=?, execution=? WHERE celeriac_task.run = ? AND celeriac_task."key" = ?',
    (
        "priority",
        "state",
        "attempt",
        "lost",
        "moved",
        "not_before",
        "revoking",
        "reason",
        "detail",
        "execution",
        "of_run",
        "of_key",
    ),
)
REVOKE_WAITING = Statement(
    "REVOKE_WAITING",
    "UPDATE celeriac_task SET state='revoked', moved=?, not_before=NULL, revoking=0, reason='revoked', detail=?, execution=NULL WHERE celeriac_task.run = ? AND celeriac_task.state IN ('waiting', 'publishing', 'queued', 'running') AND celeriac_task.state = 'waiting'",
    ("moved", "detail", "of_run"),
)
REVOKE_WAITING_TASK = Statement(
    "REVOKE_WAITING_TASK",
    "UPDATE celeriac_task SET state='revoked', moved=?, not_before=NULL, revoking=0, reason='revoked', detail=?, execution=NULL WHERE celeriac_task.run = ? AND celeriac_task.state IN ('waiting', 'publishing', 'queued', 'running') AND celeriac_task.state = 'waiting' AND celeriac_task.\"key\" = ?",
    ("moved", "detail", "of_run", "of_key"),
)
SELECT_UNACKNOWLEDGED = Statement(
    "SELECT_UNACKNOWLEDGED",
    'SELECT celeriac_event.run, celeriac_event.number, celeriac_event."key", celeriac_event.event FROM celeriac_event WHERE celeriac_event.run = ? ORDER BY celeriac_event.number',
    ("of_run",),
)
DELETE_ACKNOWLEDGED = Statement(
    "DELETE_ACKNOWLEDGED",
    "DELETE FROM celeriac_event WHERE celeriac_event.run = ? AND celeriac_event.number <= ?",
    ("of_run", "last"),
)
INSERT_TASK = Statement(
    "INSERT_TASK",
    'INSERT INTO celeriac_task (run, "key", place, id, digest, payload, priority, arrived, state, attempt, lost, moved, not_before, revoking, reason, detail, execution) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING',
    (
        "run",
        "key",
        "place",
        "id",
        "digest",
        "payload",
        "priority",
        "arrived",
        "state",
        "attempt",
        "lost",
        "moved",
        "not_before",
        "revoking",
        "reason",
        "detail",
        "execution",
    ),
)
REPLACE_TASK = Statement(
    "REPLACE_TASK",
    'INSERT INTO celeriac_task (run, "key", place, id, digest, payload, priority, arrived, state, attempt, lost, moved, not_before, revoking, reason, detail, execution) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, "key") DO UPDATE SET place = excluded.place, id = excluded.id, digest = excluded.digest, payload = excluded.payload, priority = excluded.priority, arrived = excluded.arrived, state = excluded.state, attempt = excluded.attempt, lost = excluded.lost, moved = excluded.moved, not_before = excluded.not_before, revoking = excluded.revoking, reason = excluded.reason, detail = excluded.detail, execution = excluded.execution',
    (
        "run",
        "key",
        "place",
        "id",
        "digest",
        "payload",
        "priority",
        "arrived",
        "state",
        "attempt",
        "lost",
        "moved",
        "not_before",
        "revoking",
        "reason",
        "detail",
        "execution",
    ),
)
INSERT_EARLIER_EVENT = Statement(
    "INSERT_EARLIER_EVENT",
    'INSERT INTO celeriac_move (run, number, "key", event) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING',
    ("run", "number", "key", "event"),
)
INSERT_UNACKNOWLEDGED = Statement(
    "INSERT_UNACKNOWLEDGED",
    'INSERT INTO celeriac_event (run, number, "key", event) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING',
    ("run", "number", "key", "event"),
)
REPLACE_INPUTS = Statement(
    "REPLACE_INPUTS",
    "INSERT INTO celeriac_input (run, inputs) VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET inputs = excluded.inputs",
    ("run", "inputs"),
)

CREATE_TABLES = [
    'CREATE TABLE IF NOT EXISTS celeriac_event ( run INTEGER NOT NULL, number BIGINT NOT NULL, "key" TEXT NOT NULL, event TEXT NOT NULL, PRIMARY KEY (run, number) )',
    "CREATE TABLE IF NOT EXISTS celeriac_input ( run INTEGER NOT NULL, inputs TEXT NOT NULL, PRIMARY KEY (run) )",
    "CREATE TABLE IF NOT EXISTS celeriac_ledger ( version INTEGER NOT NULL )",
    'CREATE TABLE IF NOT EXISTS celeriac_move ( run INTEGER NOT NULL, number BIGINT NOT NULL, "key" TEXT NOT NULL, event TEXT NOT NULL, PRIMARY KEY (run, number) )',
    'CREATE INDEX IF NOT EXISTS celeriac_move_of_task ON celeriac_move (run, "key")',
    'CREATE TABLE IF NOT EXISTS celeriac_order ( id INTEGER NOT NULL, run INTEGER NOT NULL, "key" TEXT, what VARCHAR(16) NOT NULL, asked FLOAT NOT NULL, PRIMARY KEY (id) )',
    "CREATE INDEX IF NOT EXISTS ix_celeriac_order_run ON celeriac_order (run)",
    "CREATE TABLE IF NOT EXISTS celeriac_owner ( id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, host VARCHAR(255) NOT NULL, boot_id VARCHAR(64) NOT NULL, pid INTEGER NOT NULL, process_started FLOAT NOT NULL, until FLOAT NOT NULL )",
    "CREATE TABLE IF NOT EXISTS celeriac_run ( id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name VARCHAR(255) NOT NULL, source TEXT, submitted BOOLEAN NOT NULL, created FLOAT NOT NULL, ended FLOAT, owner INTEGER, number BIGINT NOT NULL, acknowledged BIGINT NOT NULL, output TEXT, content VARCHAR(64), total BIGINT, counts TEXT, UNIQUE (name) )",
    'CREATE TABLE IF NOT EXISTS celeriac_task ( run INTEGER NOT NULL, "key" TEXT NOT NULL, place BIGINT NOT NULL, id VARCHAR(255) NOT NULL, digest BIGINT NOT NULL, payload TEXT NOT NULL, priority INTEGER NOT NULL, arrived FLOAT NOT NULL, state VARCHAR(16) NOT NULL, attempt INTEGER NOT NULL, lost INTEGER NOT NULL, moved FLOAT NOT NULL, not_before FLOAT, revoking BOOLEAN NOT NULL, reason VARCHAR(32), detail TEXT, execution TEXT, PRIMARY KEY (run, "key") )',
    "CREATE INDEX IF NOT EXISTS celeriac_task_place ON celeriac_task (run, place)",
    "CREATE INDEX IF NOT EXISTS celeriac_task_unfinished ON celeriac_task (run, priority DESC, place) WHERE state IN ('waiting', 'publishing', 'queued', 'running')",
]
ADD_TABLES = [
    "CREATE TABLE IF NOT EXISTS celeriac_input ( run INTEGER NOT NULL, inputs TEXT NOT NULL, PRIMARY KEY (run) )"
]
