-- Errors go on, and say all that they have.
\set VERBOSITY verbose
\pset null '(null)'
\echo connect
SELECT current_schema(), name FROM home;

\echo types
SELECT 9223372036854775807::int8, 12345678901234567890.0123456789::numeric, '\x00ff5c27'::bytea, ARRAY[1, NULL, 3],
  ARRAY['a"b', 'c,d', '', NULL], '{"a": [1, {"b": null}]}'::jsonb, NULL, 'Grüße, 𝄞 und 日本';
SELECT 1 AS one, 'x' AS two \gdesc

\echo errors
SELEC 1;
SELECT 1 / 0;
SELECT * FROM nowhere;
CREATE TABLE errors (id int PRIMARY KEY);
INSERT INTO errors VALUES (1);
INSERT INTO errors VALUES (1);

\echo transactions
CREATE TABLE transactions (id int PRIMARY KEY);
BEGIN;
INSERT INTO transactions VALUES (1);
COMMIT;
BEGIN;
INSERT INTO transactions VALUES (2);
ROLLBACK;
BEGIN;
INSERT INTO transactions VALUES (3);
SAVEPOINT here;
INSERT INTO transactions VALUES (4);
ROLLBACK TO here;
INSERT INTO transactions VALUES (5);
COMMIT;
SELECT id FROM transactions ORDER BY id;

\echo failed transaction
BEGIN;
INSERT INTO transactions VALUES (1);
SELECT 1;
COMMIT;
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO transactions VALUES (6);
INSERT INTO transactions VALUES (1);
INSERT INTO transactions VALUES (7);
COMMIT;
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT off
INSERT INTO transactions VALUES (8);
INSERT INTO transactions VALUES (9);
ROLLBACK;
\set AUTOCOMMIT on
SELECT id FROM transactions ORDER BY id;

\echo copy
CREATE TABLE copied (id int, name text);
\copy copied FROM PROGRAM 'seq 1 1000 | sed "s/.*/&\tr&/"'
COPY copied FROM STDIN;
1001	r1001
\.
COPY copied FROM STDIN;
x	y
1002	r1002
\.
\copy copied FROM PROGRAM 'yes x | head -n 200000'
\copy (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT
COPY (SELECT 1 / (3 - i) FROM generate_series(1, 1000) i) TO STDOUT;
SELECT count(*) FROM copied;

\echo portions by a cursor of psql
\set FETCH_COUNT 100
SELECT count(*), sum(n) FROM (SELECT generate_series(1, 1000) AS n) AS numbers;
\o /dev/null
SELECT generate_series(1, 1000);
SELECT 1 / (500 - n) FROM generate_series(1, 1000) AS n;
\o
\set FETCH_COUNT 0

\echo several statements
CREATE TABLE several (id int);
INSERT INTO several VALUES (1)\; INSERT INTO several VALUES (2)\; SELECT count(*) FROM several;
INSERT INTO several VALUES (3)\; SELECT 1 / 0;
SELECT count(*) FROM several;
SELECT format('SELECT %s * 10', id) FROM several ORDER BY id \gexec

\echo empty query
;
SELECT 1\; \; SELECT 2;

\echo notices
DO $$ BEGIN RAISE NOTICE 'first'; RAISE WARNING 'second'; END $$;
DROP TABLE IF EXISTS nowhere;

\echo settings
SHOW TimeZone;
SET TimeZone = 'Europe/Berlin';
SELECT '2026-02-03T04:05:06.789Z'::timestamptz;
SET DateStyle = 'SQL, DMY';
SELECT '2026-02-03T04:05:06.789Z'::timestamptz;
\encoding LATIN1
SELECT octet_length(convert_to('ü', 'UTF8'));
\encoding UTF8
SET TimeZone = 'nowhere';

\echo another connection
\connect
SELECT current_schema();
SHOW TimeZone;

\echo much
SELECT md5(repeat('0123456789', 524288));
\copy (SELECT repeat('0123456789', 100) FROM generate_series(1, 5000)) TO PROGRAM 'md5sum'
