-- A database of release 0.1.0, made by that release and dumped with pg_dump --inserts.

CREATE TABLE public.results (
    number bigint NOT NULL,
    id text NOT NULL,
    request_id text NOT NULL,
    kind text NOT NULL,
    stream_id text,
    stream_name text,
    watch_id text,
    start timestamp with time zone,
    "end" timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    prompt text NOT NULL,
    text text,
    data json,
    finish_reason text,
    error json,
    model text,
    frames integer,
    tiles integer,
    plan json,
    vision_tokens integer,
    prompt_tokens integer,
    cached_tokens integer,
    completion_tokens integer,
    decode_ms double precision,
    queue_ms double precision,
    encode_ms double precision,
    generate_ms double precision,
    total_ms double precision
);

CREATE SEQUENCE public.results_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.results_number_seq OWNED BY public.results.number;

ALTER TABLE ONLY public.results ALTER COLUMN number SET DEFAULT nextval('public.results_number_seq'::regclass);

INSERT INTO public.results VALUES (1, 'res_0', 'req_0', 'caption', 'str_1', 'yard', 'wch_1', '2026-11-22 12:00:00+00', '2026-11-22 12:00:10+00', '2026-11-22 12:00:11+00', 'Describe the scene.', '0 people and a red car.', NULL, 'stop', NULL, 'demo', 2, 3, '[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]', 363, 400, 20, 9, 1.5, 2.5, 3.5, 4.5, 12);
INSERT INTO public.results VALUES (2, 'res_1', 'req_1', 'caption', 'str_1', 'yard', 'wch_1', '2026-11-22 12:00:10+00', '2026-11-22 12:00:20+00', '2026-11-22 12:00:21+00', 'Describe the scene.', '1 people and a red car.', NULL, 'stop', NULL, 'demo', 2, 3, '[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]', 363, 400, 20, 9, 1.5, 2.5, 3.5, 4.5, 12);
INSERT INTO public.results VALUES (3, 'res_2', 'req_2', 'caption', 'str_1', 'yard', 'wch_1', '2026-11-22 12:00:20+00', '2026-11-22 12:00:30+00', '2026-11-22 12:00:31+00', 'Describe the scene.', '2 people and a red car.', NULL, 'stop', NULL, 'demo', 2, 3, '[{"grid": [2, 1], "reason": "most detail (22)"}, {"grid": [1, 1], "reason": "unchanged (0)"}]', 363, 400, 20, 9, 1.5, 2.5, 3.5, 4.5, 12);
INSERT INTO public.results VALUES (4, 'res_3', 'req_3', 'answer', 'str_2', 'street', NULL, NULL, NULL, '2026-11-22 12:01:00+00', 'Is the gate open?', 'yes', '{"choice": "yes"}', NULL, NULL, NULL, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO public.results VALUES (5, 'res_4', 'req_4', 'error', 'str_1', 'yard', NULL, NULL, NULL, '2026-11-22 12:02:00+00', 'Describe the scene.', NULL, NULL, NULL, '{"code": "INTERNAL", "message": "It broke."}', NULL, 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0);

SELECT pg_catalog.setval('public.results_number_seq', 5, true);

ALTER TABLE ONLY public.results
    ADD CONSTRAINT results_id_key UNIQUE (id);

ALTER TABLE ONLY public.results
    ADD CONSTRAINT results_pkey PRIMARY KEY (number);

ALTER TABLE ONLY public.results
    ADD CONSTRAINT results_request_id_key UNIQUE (request_id);

CREATE INDEX results_by_stream ON public.results USING btree (stream_id, created_at);

CREATE INDEX results_by_time ON public.results USING btree (created_at, number);

