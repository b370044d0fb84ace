-- A database of release 0.1.0, made by that release and dumped with Python's Connection.iterdump.
BEGIN TRANSACTION;
CREATE TABLE results (
	number INTEGER NOT NULL, 
	id TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	stream_id TEXT, 
	stream_name TEXT, 
	watch_id TEXT, 
	start DATETIME, 
	"end" DATETIME, 
	created_at DATETIME NOT NULL, 
	prompt TEXT NOT NULL, 
	text TEXT, 
	data JSON, 
	finish_reason TEXT, 
	error JSON, 
	model TEXT, 
	frames INTEGER, 
	tiles INTEGER, 
	"plan" JSON, 
	vision_tokens INTEGER, 
	prompt_tokens INTEGER, 
	cached_tokens INTEGER, 
	completion_tokens INTEGER, 
	decode_ms FLOAT, 
	queue_ms FLOAT, 
	encode_ms FLOAT, 
	generate_ms FLOAT, 
	total_ms FLOAT, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	UNIQUE (request_id)
);
INSERT INTO "results" VALUES(1,'res_0','req_0','caption','str_1','yard','wch_1','2026-11-22 12:00:00.000000','2026-11-22 12:00:10.000000','2026-11-22 12:00:11.000000','Describe the scene.','0 people and a red car.',NULL,'stop',NULL,'demo',2,3,'[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]',363,400,20,9,1.5,2.5,3.5,4.5,12.0);
INSERT INTO "results" VALUES(2,'res_1','req_1','caption','str_1','yard','wch_1','2026-11-22 12:00:10.000000','2026-11-22 12:00:20.000000','2026-11-22 12:00:21.000000','Describe the scene.','1 people and a red car.',NULL,'stop',NULL,'demo',2,3,'[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]',363,400,20,9,1.5,2.5,3.5,4.5,12.0);
INSERT INTO "results" VALUES(3,'res_2','req_2','caption','str_1','yard','wch_1','2026-11-22 12:00:20.000000','2026-11-22 12:00:30.000000','2026-11-22 12:00:31.000000','Describe the scene.','2 people and a red car.',NULL,'stop',NULL,'demo',2,3,'[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]',363,400,20,9,1.5,2.5,3.5,4.5,12.0);
INSERT INTO "results" VALUES(4,'res_3','req_3','answer','str_2','street',NULL,NULL,NULL,'2026-11-22 12:01:00.000000','Is the gate open?','yes','{"choice": "yes"}',NULL,NULL,NULL,0,0,NULL,0,0,0,0,0.0,0.0,0.0,0.0,0.0);
INSERT INTO "results" VALUES(5,'res_4','req_4','error','str_1','yard',NULL,NULL,NULL,'2026-11-22 12:02:00.000000','Describe the scene.',NULL,NULL,NULL,'{"code": "INTERNAL", "message": "It broke."}',NULL,0,0,NULL,0,0,0,0,0.0,0.0,0.0,0.0,0.0);
CREATE INDEX results_by_stream ON results (stream_id, created_at);
CREATE INDEX results_by_time ON results (created_at, number);
COMMIT;
