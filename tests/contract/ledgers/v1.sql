BEGIN TRANSACTION;
CREATE TABLE celeriac_event (
	run INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	"key" TEXT NOT NULL, 
	event TEXT NOT NULL, 
	PRIMARY KEY (run, number)
);
INSERT INTO "celeriac_event" VALUES(1,5,'failed','{"state":"failed","when":1700000001.0,"id":"id-failed","attempt":1,"reason":"exit_code","detail":"exit code 3","execution":{"host":"in-memory","exit_code":3}}');
INSERT INTO "celeriac_event" VALUES(1,6,'succeeded','{"state":"success","when":1700000001.0,"id":"id-succeeded","attempt":1,"execution":{"host":"in-memory","exit_code":0}}');
CREATE TABLE celeriac_ledger (
	version INTEGER NOT NULL
);
INSERT INTO "celeriac_ledger" VALUES(1);
CREATE TABLE celeriac_move (
	run INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	"key" TEXT NOT NULL, 
	event TEXT NOT NULL, 
	PRIMARY KEY (run, number)
);
INSERT INTO "celeriac_move" VALUES(1,8,'retried','{"state":"waiting","when":1700000001.0,"id":"id-retried","attempt":1,"reason":"exit_code","detail":"exit code 1","execution":{"host":"in-memory","exit_code":1},"retry_in":69.09832980434655}');
CREATE TABLE celeriac_order (
	id INTEGER NOT NULL, 
	run INTEGER NOT NULL, 
	"key" TEXT, 
	what VARCHAR(16) NOT NULL, 
	asked FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE celeriac_owner (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	host VARCHAR(255) NOT NULL, 
	boot_id VARCHAR(64) NOT NULL, 
	pid INTEGER NOT NULL, 
	process_started FLOAT NOT NULL, 
	until FLOAT NOT NULL
);
CREATE TABLE celeriac_run (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name VARCHAR(255) NOT NULL, 
	source TEXT, 
	submitted BOOLEAN NOT NULL, 
	created FLOAT NOT NULL, 
	ended FLOAT, 
	owner INTEGER, 
	number BIGINT NOT NULL, 
	acknowledged BIGINT NOT NULL, 
	output TEXT, 
	content VARCHAR(64), 
	total BIGINT, 
	counts TEXT, 
	UNIQUE (name)
);
INSERT INTO "celeriac_run" VALUES(1,'nightly',NULL,0,1.79565953165909647937e+09,NULL,1,8,0,NULL,NULL,NULL,NULL);
CREATE TABLE celeriac_task (
	run INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	place BIGINT NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	digest BIGINT NOT NULL, 
	payload TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	arrived FLOAT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempt INTEGER NOT NULL, 
	lost INTEGER NOT NULL, 
	moved FLOAT NOT NULL, 
	not_before FLOAT, 
	revoking BOOLEAN NOT NULL, 
	reason VARCHAR(32), 
	detail TEXT, 
	execution TEXT, 
	PRIMARY KEY (run, "key")
);
INSERT INTO "celeriac_task" VALUES(1,'succeeded',0,'id-succeeded',3701515200099836790,'{"command":["echo","succeeded"]}',0,1700000000.0,'success',1,0,1700000001.0,NULL,0,NULL,NULL,'{"host":"in-memory","exit_code":0}');
INSERT INTO "celeriac_task" VALUES(1,'failed',1,'id-failed',5450149938138416177,'{"command":["echo","failed"]}',0,1700000000.0,'failed',1,0,1700000001.0,NULL,0,'exit_code','exit code 3','{"host":"in-memory","exit_code":3}');
INSERT INTO "celeriac_task" VALUES(1,'retried',2,'id-retried',-2471875978671469517,'{"command":["echo","retried"],"retries":1,"retry_delay":60}',0,1700000000.0,'waiting',2,0,1700000001.0,1.70000007009832978252e+09,0,'exit_code','exit code 1','{"host":"in-memory","exit_code":1}');
INSERT INTO "celeriac_task" VALUES(1,'running',3,'id-running',499307728590268254,'{"command":["echo","running"],"cwd":"/tmp","timeout":30}',0,1700000000.0,'running',1,0,1700000001.0,NULL,0,NULL,NULL,'{"host":"in-memory"}');
INSERT INTO "celeriac_task" VALUES(1,'waiting',4,'id-waiting',681279435019270250,'{"command":["echo","waiting"],"queue":"gpu","env":{"A":"1","PASSWORD":{"secret":"hush"}}}',-1,1700000000.0,'waiting',1,0,1700000000.0,NULL,0,NULL,NULL,NULL);
INSERT INTO "celeriac_task" VALUES(1,'held',5,'id-held',3525736692100578045,'{"command":["echo","held"],"needs":["waiting"]}',0,1700000000.0,'waiting',1,0,1700000000.0,NULL,0,NULL,NULL,NULL);
CREATE INDEX ix_celeriac_order_run ON celeriac_order (run);
CREATE INDEX celeriac_task_unfinished ON celeriac_task (run, priority DESC, place) WHERE state IN ('waiting', 'publishing', 'queued', 'running');
CREATE INDEX celeriac_task_place ON celeriac_task (run, place);
CREATE INDEX celeriac_move_of_task ON celeriac_move (run, "key");
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('celeriac_run',1);
INSERT INTO "sqlite_sequence" VALUES('celeriac_owner',1);
COMMIT;
