#!/bin/bash
# One upstream suite against one target, on a PostgreSQL 15 of its own; as root, for the server runs as postgres.
#
#   test/upstream/run.sh regress|pipeline|psycopg2|psycopg|asyncpg|pg direct|pgbouncer|perseus [session|transaction]
#
# WORK (default /tmp/perseus-upstream) holds the sources, as README.md says, and gets the results: out/<suite>-<target>-<mode>.
# PORT (default 6500) and the one after it must be free. PGBOUNCER and SERVER, where they are not
# Debian's installed ones, are the pgbouncer and the directory of the server's programs.
set -euo pipefail

suite=$1 target=$2 mode=${3:-session}
perseus=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-/tmp/perseus-upstream}
server_port=${PORT:-6500}
out=$work/out/$suite-$target-$mode
source=$work/postgresql-15.18
server=${SERVER:-/usr/lib/postgresql/15}
headers=$work/server-dev
user=postgres
database=suite
# That the suite makes and connects to.
more_databases=
limit=900

# What the suites take for granted.
case $suite in
  regress) database=regression ;;
  asyncpg) database=postgres more_databases="testdb asyncpg_intro_test" ;;
  pg) more_databases=template1 ;;
esac

as_postgres() { su postgres -c "$*"; }
sql() { env -u PGOPTIONS psql -qX -h 127.0.0.1 -p "$server_port" -U $user "$@"; }

build() {
  local include=$headers/usr/include/postgresql/15/server libraries=$headers/usr/lib/postgresql/15/lib
  mkdir -p "$work/lib"
  gcc -O2 -fPIC -shared -fno-strict-aliasing -I"$include" -I/usr/include/postgresql -I"$source/src/test/regress" \
    -o "$work/lib/regress.so" "$source/src/test/regress/regress.c"
  cp "$server"/lib/{autoinc,refint}.so "$work/lib"
  gcc -O1 -I/usr/include/postgresql -I/usr/include/postgresql/internal -I"$include" -o "$work/lib/libpq_pipeline" \
    "$source/src/test/modules/libpq_pipeline/libpq_pipeline.c" \
    -Wl,--start-group "$libraries/libpgcommon.a" "$libraries/libpgport.a" -Wl,--end-group -lpq
}

start_server() {
  as_postgres "$server/bin/initdb -D $out/data -A trust -U $user --no-locale -E UTF8" > "$out/initdb.log"
  cat >> "$out/data/postgresql.conf" <<EOF
port = $server_port
listen_addresses = '127.0.0.1'
unix_socket_directories = '$out/data'
max_connections = 100
max_prepared_transactions = 2
fsync = off
EOF
  as_postgres "$server/bin/pg_ctl -D $out/data -l $out/server.log -w start" > "$out/pg_ctl.log"
  trap stop EXIT
  [ $database = postgres ] || sql -c "CREATE DATABASE $database TEMPLATE template0"
}

# As ALTER DATABASE, too, what the suite asks for at startup: RESET through pgbouncer falls to the server connection's own.
prepare_regress() {
  local setting
  for setting in "lc_messages TO 'C'" "lc_monetary TO 'C'" "lc_numeric TO 'C'" "lc_time TO 'C'" "bytea_output TO 'hex'" \
    "timezone_abbreviations TO 'Default'" "intervalstyle TO 'postgres_verbose'" "datestyle TO 'Postgres, MDY'" \
    "timezone TO 'America/Los_Angeles'"; do
    sql -c "ALTER DATABASE $database SET $setting"
  done
}

start_pgbouncer() {
  cat > "$out/pgbouncer.ini" <<EOF
[databases]
* = host=127.0.0.1 port=$server_port user=$user
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = $mode
default_pool_size = 50
max_client_conn = 200
ignore_startup_parameters = extra_float_digits,options,search_path,client_min_messages,default_transaction_isolation,statement_timeout,lock_timeout,idle_in_transaction_session_timeout
pidfile = $out/pgbouncer.pid
EOF
  "${PGBOUNCER:-/usr/sbin/pgbouncer}" -q -u postgres "$out/pgbouncer.ini" > "$out/pgbouncer.log" 2>&1 &
  pooler=$!
}

start_perseus() {
  (cd "$perseus" && PATH=$PWD/node_modules/.bin:$PATH exec node test/upstream/perseus.ts "$port" "$server_port" "$mode" $database $more_databases) \
    > "$out/perseus.log" 2>&1 &
  pooler=$!
  export PGPASSWORD=postgres PGOPTIONS="-c schema_search_path=public" ASYNCPG_SEARCH_PATH=public
}

pooler=
stop() {
  if [ -n "$pooler" ]; then kill "$pooler" && wait "$pooler" || true; fi
  as_postgres "$server/bin/pg_ctl -D $out/data -m fast stop" > "$out/pg_ctl.log"
}

run_regress() {
  mkdir -m 777 "$out/results"
  timeout $limit "$server/lib/pgxs/src/test/regress/pg_regress" --bindir="$server/bin" --dlpath="$work/lib" \
    --inputdir="$source/src/test/regress" --outputdir="$out" --schedule="$source/src/test/regress/parallel_schedule" \
    --max-connections=4 --use-existing --host=127.0.0.1 --port="$port" --user=$user --dbname=$database
}

run_pipeline() {
  local test
  for test in $("$work/lib/libpq_pipeline" tests); do
    timeout 60 "$work/lib/libpq_pipeline" -r 700 "$test" "host=127.0.0.1 port=$port user=$user dbname=$database" &&
      echo "passed: $test" || echo "failed: $test"
  done
}

run_psycopg2() {
  sql -d $database -c "CREATE EXTENSION hstore"
  cd "$work/psycopg2"
  PSYCOPG2_TEST_FAST=1 PSYCOPG2_TESTDB=$database PSYCOPG2_TESTDB_HOST=127.0.0.1 PSYCOPG2_TESTDB_PORT=$port \
    PSYCOPG2_TESTDB_USER=$user PYTHONPATH=. timeout $limit /usr/bin/python3 "$perseus/test/upstream/psycopg2_suite.py" --verbose
}

run_psycopg() {
  cd "$work/psycopg"
  PYTHONPATH=$work/python:$work/psycopg/psycopg_pool timeout $limit /usr/bin/python3 -m pytest -o cache_dir="$out/cache" \
    -q -rfE --tb=short -m "not slow and not timing" \
    --test-dsn "host=127.0.0.1 port=$port user=$user dbname=$database" tests
}

run_asyncpg() {
  cp "$perseus/test/upstream/asyncpg_conftest.py" "$work/asyncpg/conftest.py"
  cd "$work/asyncpg"
  PYTHONPATH=$work/python PGHOST=127.0.0.1 PGPORT=$port PGUSER=$user PGDATABASE=$database timeout $limit \
    /usr/bin/python3 -m pytest -o cache_dir="$out/cache" -p no:asyncio -q -rfE --tb=short tests
}

# A process for each file, as its Makefile has it: the first failure in a file ends it.
run_pg() {
  local file
  cd "$work/node-postgres/packages/pg"
  for file in $(find test/integration -name '*-tests.js' | sort); do
    PATH=$perseus/node_modules/.bin:$PATH PGHOST=127.0.0.1 PGPORT=$port PGUSER=$user PGDATABASE=$database PGTESTNOSSL=1 \
      timeout 60 node "$file" && echo "passed: $file" || echo "failed: $file"
  done
}

umask 022
rm -rf "$out"
mkdir -p "$out"
chown postgres "$out"
[ -e "$work/lib/libpq_pipeline" ] || build
start_server
[ "$suite" != regress ] || prepare_regress
port=$server_port
if [ "$target" != direct ]; then
  port=$((server_port + 1))
  "start_$target"
  for _ in $(seq 100); do (: < "/dev/tcp/127.0.0.1/$port") 2> /dev/null && break || sleep 0.1; done
fi
# Failed tests are what it is run for, not a failure of the run.
(umask 000 && "run_$suite") > "$out/log" 2>&1 || true
tail -n 8 "$out/log"
# Of the suites that do not count themselves.
if [ "$suite" = pipeline ] || [ "$suite" = pg ]; then
  echo "$(grep -c '^passed: ' "$out/log") passed, $(grep -c '^failed: ' "$out/log") failed"
fi
