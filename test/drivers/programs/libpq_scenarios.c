/*
 * libpq itself: pipelines, single rows, a cancel request, cursors in binary, COPY, large objects by function calls.
 * The target and its schema come from libpq's variables.
 */
#include <libpq-fe.h>
#include <libpq/libpq-fs.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CLIENTS = 4, ROUNDS = 30, LARGE = 5242880 };

/* What cannot be is said where the transcript should be. */
static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static PGconn *connect_with(const char *conninfo) {
  PGconn *connection = PQconnectdb(conninfo);
  if (PQstatus(connection) != CONNECTION_OK) fail("connect", PQerrorMessage(connection));
  return connection;
}

static PGconn *connect_here(void) { return connect_with(""); }

static PGresult *query(PGconn *connection, const char *format, ...) {
  char sql[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(sql, sizeof sql, format, arguments);
  va_end(arguments);
  return PQexec(connection, sql);
}

static const char *sqlstate(const PGresult *result) {
  const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  return state == NULL ? "null" : state;
}

static void execute(PGconn *connection, const char *sql) {
  PGresult *result = PQexec(connection, sql);
  if (PQresultStatus(result) != PGRES_COMMAND_OK) fail(sql, PQerrorMessage(connection));
  PQclear(result);
}

/* The first value, good until the next call. */
static const char *value(PGconn *connection, const char *sql) {
  static char text[1024];
  PGresult *result = PQexec(connection, sql);
  if (PQresultStatus(result) != PGRES_TUPLES_OK) fail(sql, PQerrorMessage(connection));
  snprintf(text, sizeof text, "%s", PQgetvalue(result, 0, 0));
  PQclear(result);
  return text;
}

static const char *error_of(PGconn *connection, const char *sql) {
  static char state[6];
  PGresult *result = PQexec(connection, sql);
  snprintf(state, sizeof state, "%s", sqlstate(result));
  PQclear(result);
  return state;
}

/* ---- the scenarios: each prints its line */

static void connect_scenario(void) {
  PGconn *connection = connect_here();
  PGresult *row = query(connection, "SELECT current_schema(), name FROM home");
  printf("[\"connect\", {\"schema\": \"%s\", \"home\": \"%s\"}]\n", PQgetvalue(row, 0, 0), PQgetvalue(row, 0, 1));
  PQclear(row);
  PQfinish(connection);
}

static void connect_otherwise(void) {
  char conninfo[256];
  snprintf(conninfo, sizeof conninfo, "options='-c %s=%s'", getenv("SCHEMA_PARAMETER"), getenv("SCHEMA"));
  PGconn *connection = connect_with(conninfo);
  printf("[\"connect otherwise\", \"%s\"]\n", value(connection, "SELECT current_schema()"));
  PQfinish(connection);
}

/* By PQreset, which connects again with what it connected with first. */
static void reconnect(void) {
  PGconn *connection = connect_here();
  printf("[\"reconnect\", [");
  for (int i = 0; i < 5; i++) {
    printf("%s\"%s\"", i == 0 ? "" : ", ", value(connection, "SELECT current_schema()"));
    PQreset(connection);
  }
  printf("]]\n");
  PQfinish(connection);
}

/* One thread, and a transaction of each client by turns: every one of them meets the others' connections. */
static void statements(void) {
  PGconn *clients[CLIENTS];
  long sums[CLIENTS] = {0};
  for (int client = 0; client < CLIENTS; client++) {
    clients[client] = connect_here();
    for (int turn = 0, factor = 1; turn < 3; turn++, factor *= 10) {
      char name[8], sql[64];
      snprintf(name, sizeof name, "s%d", turn);
      snprintf(sql, sizeof sql, "SELECT $1::int * %d + %d", factor, client);
      PQclear(PQprepare(clients[client], name, sql, 0, NULL));
    }
  }
  for (int round = 0; round < ROUNDS; round++) {
    for (int client = 0; client < CLIENTS; client++) {
      char name[8], parameter[8];
      snprintf(name, sizeof name, "s%d", round % 3);
      snprintf(parameter, sizeof parameter, "%d", round);
      const char *parameters[] = {parameter};
      PGresult *result = PQexecPrepared(clients[client], name, 1, parameters, NULL, NULL, 0);
      if (PQresultStatus(result) != PGRES_TUPLES_OK) fail("statements", PQerrorMessage(clients[client]));
      sums[client] += atol(PQgetvalue(result, 0, 0));
      PQclear(result);
    }
  }
  printf("[\"statements\", [");
  for (int client = 0; client < CLIENTS; client++) {
    printf("%s%ld", client == 0 ? "" : ", ", sums[client]);
    PQfinish(clients[client]);
  }
  printf("]]\n");
}

static void cursor(void) {
  PGconn *connection = connect_here();
  long rows = 0, sum = 0;
  char between[16] = "";
  execute(connection, "BEGIN");
  execute(connection, "DECLARE portions BINARY CURSOR FOR SELECT generate_series(1, 1000)");
  for (;;) {
    PGresult *portion = PQexecParams(connection, "FETCH 100 FROM portions", 0, NULL, NULL, NULL, NULL, 1);
    int count = PQntuples(portion);
    for (int i = 0; i < count; i++) {
      const unsigned char *bytes = (const unsigned char *)PQgetvalue(portion, i, 0);
      sum += (long)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
    }
    PQclear(portion);
    if (count == 0) break;
    if (rows == 0) snprintf(between, sizeof between, "%s", value(connection, "SELECT 10"));
    rows += count;
  }
  execute(connection, "COMMIT");
  printf("[\"cursor\", {\"rows\": %ld, \"sum\": %ld, \"between\": %s}]\n", rows, sum, between);
  PQfinish(connection);
}

/* In single-row mode: rows are handed out while others are still on their way. */
static void streamed_rows(void) {
  PGconn *connection = connect_here();
  long rows = 0, sum = 0;
  PQsendQuery(connection, "SELECT generate_series(1, 1000)");
  PQsetSingleRowMode(connection);
  for (PGresult *row; (row = PQgetResult(connection)) != NULL; PQclear(row)) {
    if (PQresultStatus(row) != PGRES_SINGLE_TUPLE) continue;
    rows++;
    sum += atol(PQgetvalue(row, 0, 0));
  }
  printf("[\"streamed rows\", {\"rows\": %ld, \"sum\": %ld}]\n", rows, sum);
  PQfinish(connection);
}

/* The SQLSTATE with which a COPY ends. */
static const char *end_of_copy(PGconn *connection) {
  static char state[6];
  snprintf(state, sizeof state, "null");
  for (PGresult *result; (result = PQgetResult(connection)) != NULL; PQclear(result)) {
    if (PQresultStatus(result) == PGRES_FATAL_ERROR) snprintf(state, sizeof state, "%s", sqlstate(result));
  }
  return state;
}

static void copy(void) {
  PGconn *connection = connect_here();
  const char *copy_in = "COPY copied FROM STDIN", *count = "SELECT count(*) FROM copied";
  char line[64], *row;
  execute(connection, "CREATE TABLE copied (id int, name text)");
  PQclear(PQexec(connection, copy_in));
  for (int id = 1; id <= 1000; id++) {
    PQputCopyData(connection, line, snprintf(line, sizeof line, "%d\tr%d\n", id, id));
  }
  PQputCopyEnd(connection, NULL);
  end_of_copy(connection);
  printf("[\"copy\", {\"rows\": %s, \"out\": [", value(connection, count));
  PQclear(PQexec(connection, "COPY (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT"));
  for (int i = 0, length; (length = PQgetCopyData(connection, &row, 0)) > 0; i++) {
    char *tab = strchr(row, '\t');
    printf("%s\"%.*s\\t%.*s\"", i == 0 ? "" : ", ", (int)(tab - row), row, (int)(length - (tab - row) - 2), tab + 1);
    PQfreemem(row);
  }
  end_of_copy(connection);
  PQclear(PQexec(connection, copy_in));
  for (int i = 0; i < 50000; i++) PQputCopyData(connection, "x\ty\n", 4);
  PQputCopyEnd(connection, NULL);
  printf("], \"refused\": \"%s\"", end_of_copy(connection));
  PQclear(PQexec(connection, copy_in));
  PQputCopyData(connection, "2001\tx\n", 7);
  PQputCopyEnd(connection, "no more of this");
  printf(", \"abandoned\": \"%s\"", end_of_copy(connection));
  PQclear(PQexec(connection, "COPY (SELECT 1 / (500 - i) FROM generate_series(1, 1000) i) TO STDOUT"));
  while (PQgetCopyData(connection, &row, 0) > 0) PQfreemem(row);
  printf(", \"brokenOff\": \"%s\"", end_of_copy(connection));
  printf(", \"left\": %s}]\n", value(connection, count));
  PQfinish(connection);
}

/* What comes of one statement in a pipeline. */
static void print_piped(PGconn *connection, const char *before) {
  PGresult *result = PQgetResult(connection);
  switch (PQresultStatus(result)) {
    case PGRES_TUPLES_OK: printf("%s%s", before, PQgetvalue(result, 0, 0)); break;
    case PGRES_PIPELINE_ABORTED: printf("%s\"skipped\"", before); break;
    default: printf("%s\"%s\"", before, sqlstate(result));
  }
  PQclear(result);
  if (PQgetResult(connection) != NULL) fail("pipeline", "more than one result");
}

static void send_piped(PGconn *connection, const char *sql) {
  if (PQsendQueryParams(connection, sql, 0, NULL, NULL, NULL, NULL, 0) != 1) fail(sql, PQerrorMessage(connection));
}

static void expect_sync(PGconn *connection) {
  PGresult *result = PQgetResult(connection);
  if (PQresultStatus(result) != PGRES_PIPELINE_SYNC) fail("pipeline", "not at its end");
  PQclear(result);
}

static void pipeline(void) {
  PGconn *connection = connect_here();
  PQenterPipelineMode(connection);
  for (int i = 1; i <= 3; i++) {
    char sql[16];
    snprintf(sql, sizeof sql, "SELECT %d", i);
    send_piped(connection, sql);
  }
  /* The answers to the first come although no Sync was sent. */
  PQsendFlushRequest(connection);
  PQflush(connection);
  printf("[\"pipeline\", {\"results\": ");
  print_piped(connection, "[");
  print_piped(connection, ", ");
  PQpipelineSync(connection);
  print_piped(connection, ", ");
  expect_sync(connection);
  send_piped(connection, "SELECT 1");
  send_piped(connection, "SELECT 1 / 0");
  send_piped(connection, "SELECT 3");
  PQpipelineSync(connection);
  send_piped(connection, "SELECT 5");
  PQpipelineSync(connection);
  printf("], \"failing\": ");
  print_piped(connection, "[");
  print_piped(connection, ", ");
  print_piped(connection, ", ");
  expect_sync(connection);
  print_piped(connection, "], \"after\": ");
  expect_sync(connection);
  if (PQexitPipelineMode(connection) != 1) fail("pipeline", PQerrorMessage(connection));
  printf("}]\n");
  PQfinish(connection);
}

/* Pipelines of several clients, each with a Sync for every statement, all on their way before any answer is read. */
static void pipelines(void) {
  PGconn *clients[CLIENTS];
  for (int client = 0; client < CLIENTS; client++) {
    clients[client] = connect_here();
    PQenterPipelineMode(clients[client]);
    for (int turn = 0, factor = 1; turn < 3; turn++, factor *= 10) {
      char name[8], sql[64];
      snprintf(name, sizeof name, "s%d", turn);
      snprintf(sql, sizeof sql, "SELECT $1::int * %d + %d", factor, client);
      PQsendPrepare(clients[client], name, sql, 0, NULL);
      PQpipelineSync(clients[client]);
    }
    for (int round = 0; round < ROUNDS; round++) {
      char name[8], parameter[8];
      snprintf(name, sizeof name, "s%d", round % 3);
      snprintf(parameter, sizeof parameter, "%d", round);
      const char *parameters[] = {parameter};
      PQsendQueryPrepared(clients[client], name, 1, parameters, NULL, NULL, 0);
      PQpipelineSync(clients[client]);
    }
  }
  printf("[\"pipelines of several clients\", [");
  for (int client = 0; client < CLIENTS; client++) {
    long sum = 0;
    for (int syncs = 0; syncs < 3 + ROUNDS;) {
      PGresult *result = PQgetResult(clients[client]);
      /* NULL stands between the statements. */
      if (result == NULL) continue;
      if (PQresultStatus(result) == PGRES_PIPELINE_SYNC) syncs++;
      else if (PQresultStatus(result) == PGRES_TUPLES_OK) sum += atol(PQgetvalue(result, 0, 0));
      else if (PQresultStatus(result) == PGRES_FATAL_ERROR) fail("pipelines", PQresultErrorMessage(result));
      PQclear(result);
    }
    printf("%s%ld", client == 0 ? "" : ", ", sum);
    PQfinish(clients[client]);
  }
  printf("]]\n");
}

static void cancel(void) {
  PGconn *connection = connect_here(), *other = connect_here();
  const char *sleep = "SELECT pg_sleep(20) /* libpq */";
  char running[256], why[256];
  snprintf(running, sizeof running, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '%s'", sleep);
  PQsendQuery(connection, sleep);
  while (strcmp(value(other, running), "0") == 0) continue;
  PGcancel *request = PQgetCancel(connection);
  if (PQcancel(request, why, sizeof why) != 1) fail("cancel", why);
  PQfreeCancel(request);
  PGresult *result = PQgetResult(connection);
  printf("[\"cancel\", {\"error\": \"%s\"", sqlstate(result));
  PQclear(result);
  while ((result = PQgetResult(connection)) != NULL) PQclear(result);
  printf(", \"after\": %s}]\n", value(connection, "SELECT 1"));
  PQfinish(connection);
  PQfinish(other);
}

/* By function calls, which have a message of their own. */
static void large_object(void) {
  PGconn *connection = connect_here();
  char written[] = "0123456789", read[sizeof written] = "";
  execute(connection, "BEGIN");
  Oid oid = lo_creat(connection, INV_READ | INV_WRITE);
  int object = lo_open(connection, oid, INV_READ | INV_WRITE);
  for (int i = 0; i < 1000; i++) lo_write(connection, object, written, 10);
  pg_int64 size = lo_tell64(connection, object);
  lo_lseek64(connection, object, 5000, SEEK_SET);
  lo_read(connection, object, read, 10);
  lo_close(connection, object);
  lo_unlink(connection, oid);
  execute(connection, "COMMIT");
  printf("[\"large object\", {\"size\": %ld, \"read\": \"%s\"}]\n", (long)size, read);
  PQfinish(connection);
}

static void large(void) {
  PGconn *connection = connect_here();
  char *text = malloc(LARGE + 1);
  for (int i = 0; i < LARGE; i++) text[i] = (char)('0' + i % 10);
  text[LARGE] = '\0';
  const char *parameters[] = {text};
  PGresult *sent = PQexecParams(connection, "SELECT md5($1)", 1, NULL, parameters, NULL, NULL, 0);
  PGresult *received = query(connection, "SELECT repeat('0123456789', 524288)");
  bool same = PQgetlength(received, 0, 0) == LARGE && memcmp(PQgetvalue(received, 0, 0), text, LARGE) == 0;
  printf("[\"large\", {\"sent\": \"%s\", \"received\": \"%s\"}]\n", PQgetvalue(sent, 0, 0),
         same ? PQgetvalue(sent, 0, 0) : "something else");
  PQclear(sent);
  PQclear(received);
  free(text);
  PQfinish(connection);
}

static void several_statements(void) {
  PGconn *connection = connect_here();
  const char *count = "SELECT count(*) FROM several";
  execute(connection, "CREATE TABLE several (id int)");
  execute(connection, "INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)");
  printf("[\"several statements\", {\"rows\": %s", value(connection, count));
  printf(", \"error\": \"%s\"", error_of(connection, "INSERT INTO several VALUES (3); SELECT 1 / 0"));
  printf(", \"left\": %s}]\n", value(connection, count));
  PQfinish(connection);
}

static void empty_query(void) {
  PGconn *connection = connect_here();
  for (int i = 0; i < 2; i++) {
    PGresult *result = PQexec(connection, i == 0 ? "" : " ; ");
    if (PQresultStatus(result) != PGRES_EMPTY_QUERY) fail("empty query", PQresStatus(PQresultStatus(result)));
    PQclear(result);
  }
  printf("[\"empty query\", %s]\n", value(connection, "SELECT 1"));
  PQfinish(connection);
}

static void print_notice(void *seen, const PGresult *notice) {
  printf("%s\"%s\"", (*(int *)seen)++ == 0 ? "" : ", ", PQresultErrorField(notice, PG_DIAG_MESSAGE_PRIMARY));
}

static void notices(void) {
  PGconn *connection = connect_here();
  int seen = 0;
  PQsetNoticeReceiver(connection, print_notice, &seen);
  printf("[\"notices\", [");
  execute(connection, "DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$");
  printf("]]\n");
  PQfinish(connection);
}

int main(void) {
  connect_scenario();
  connect_otherwise();
  reconnect();
  statements();
  cursor();
  streamed_rows();
  copy();
  pipeline();
  pipelines();
  cancel();
  large_object();
  large();
  several_statements();
  empty_query();
  notices();
  return 0;
}
