#!/bin/bash
# One upstream suite against one target, on a PostgreSQL 15 of its own; as root, for the server runs as postgres.
#
#   test/upstream/run.sh <suite> direct|pgbouncer|perseus [session|transaction]
#
# The suites: regress, pipeline, psycopg2, psycopg, asyncpg, pg, pgjdbc, postgresjs, effect.
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
prepared_transactions=2
# Lines of pg_hba.conf.
logins=
limit=900

# What the suites take for granted.
case $suite in
  regress) database=regression ;;
  asyncpg) database=postgres more_databases="testdb asyncpg_intro_test" ;;
  pg) more_databases=template1 ;;
  postgresjs)
    database=postgres
    # Its users log in to one database, each to a schema of its own: <database>:<schema>:<user>:<password>.
    more_databases="postgres_js_test:public:postgres_js_test:postgres postgres:postgres:postgres:postgres"
    for name in postgres postgres_js_test_md5 postgres_js_test_scram; do
      more_databases+=" postgres_js_test:$name:$name:$name"
    done
    ;;
  effect)
    # One for each container that the suite starts.
    databases=$(echo effect_{1..12})
    for name in $databases; do more_databases+=" $name:public:effect:effect"; done
    ;;
  # The roles that it makes log in by password.
  pgjdbc)
    prepared_transactions=64
    logins="host all $user 127.0.0.1/32 trust
host all all 127.0.0.1/32 md5"
    ;;
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
max_prepared_transactions = $prepared_transactions
fsync = off
EOF
  case $suite in postgresjs | effect) "configure_$suite" ;; esac
  [ -z "$logins" ] || echo "$logins" > "$out/data/pg_hba.conf"
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

# A password to be wrong about.
configure_effect() {
  printf 'host all effect 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n' > "$out/pg_hba.conf"
  cat "$out/pg_hba.conf" > "$out/data/pg_hba.conf"
  echo '"effect" "effect"' > "$out/users"
}

# Roles that log in as they are made to, and logical replication. What its bootstrap.js makes, libpq makes at the server.
configure_postgresjs() {
  sed "s/samehost /127.0.0.1\/32 /" "$work/postgres.js/tests/pg_hba.conf" > "$out/pg_hba.conf"
  cat "$out/pg_hba.conf" > "$out/data/pg_hba.conf"
  echo "wal_level = logical" >> "$out/data/postgresql.conf"
  printf '[server]\nhost=127.0.0.1\nport=%s\nuser=postgres\ndbname=postgres\n' "$server_port" > "$out/pg_service.conf"
  for name in postgres postgres_js_test postgres_js_test_md5 postgres_js_test_scram; do
    echo "\"$name\" \"$name\""
  done > "$out/users"
}

prepare_effect() {
  local name
  sql -c "CREATE ROLE effect SUPERUSER LOGIN PASSWORD 'effect'"
  for name in $databases; do sql -c "CREATE DATABASE $name OWNER effect"; done
}

start_pgbouncer() {
  # Suites that look at who they are, and at passwords.
  local user="user=$user" login="auth_type = any" sockets=
  if [ -e "$out/users" ]; then
    user= sockets=$out login="auth_type = hba
auth_hba_file = $out/pg_hba.conf
auth_file = $out/users"
  fi
  cat > "$out/pgbouncer.ini" <<EOF
[databases]
* = host=127.0.0.1 port=$server_port $user
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir = $sockets
$login
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

# It has the port 5432 in its tests, and stops at the first failure.
run_postgresjs() {
  cp -r "$work/postgres.js/"{package.json,src,tests} "$out"
  cp "$perseus/test/upstream/postgresjs_test.js" "$out/tests/test.js"
  sed -i "s/5432/$port/" "$out/tests/index.js"
  [ "$target" != perseus ] || sed -i \
    "s/application_name: env/schema_search_path: user === 'postgres_js_test' ? 'public' : user, &/" "$out/src/index.js"
  sql -d template1 -c "CREATE SCHEMA postgres"
  local sockets=$out
  [ "$target" != direct ] || sockets=$out/data
  cd "$out"
  PATH=$perseus/node_modules/.bin:$PATH PGHOST=127.0.0.1 PGPORT=$port PGUSER=$user PGDATABASE=$database PGSOCKET=$sockets \
    PGOPTIONS= PGSERVICEFILE=$out/pg_service.conf PGSERVICE=server timeout $limit node tests/index.js
}

run_effect() {
  cp -r "$work/effect-sql-pg/test" "$out"
  cp -r "$perseus/node_modules/@effect/sql-pg" "$out"
  ln -s "$perseus/node_modules" "$out"
  [ "$target" != perseus ] || sed -i 's/\.\.\.named,/schema_search_path: "public", &/' "$out/sql-pg/dist/PgConnection.js"
  cd "$out"
  PATH=$perseus/node_modules/.bin:$PATH PGHOST=127.0.0.1 PGPORT=$port PGUSER=effect PGPASSWORD=effect PGOPTIONS= \
    UPSTREAM_DATABASES=$databases NO_COLOR=1 timeout $limit vitest run --config "$perseus/test/upstream/effect_sql.config.ts"
}

# With Debian's driver; what of its tests needs libraries that Debian does not have is left out, as README.md says.
run_pgjdbc() {
  local jars=/usr/share/java classes=$work/lib/pgjdbc path name
  path=$jars/postgresql.jar
  for name in junit-platform-console-standalone junit4 hamcrest checker-qual scram-client scram-common stringprep; do
    path+=:$jars/$name.jar
  done
  if ! [ -e "$classes" ]; then
    find "$work/pgjdbc/pgjdbc/src/test/java" -name '*.java' ! -name '*Suite.java' \
      -exec grep -LE 'uk.org.webcompere|se.jiderhamn|org.osgi' {} + > "$out/sources"
    javac -nowarn -encoding UTF-8 -d "$classes" -cp "$path" @"$out/sources"
  fi
  if [ "$target" = perseus ]; then
    mkdir -p "$out/driver/org/postgresql"
    echo "currentSchema=public" > "$out/driver/org/postgresql/driverconfig.properties"
  fi
  sql -d $database -c "CREATE EXTENSION hstore"
  # One test writes until its server process has been terminated.
  sql -d $database > /dev/null << 'EOF' &
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE query LIKE 'COPY copytest FROM STDIN%' AND query_start < now() - interval '20 s' \watch 5
EOF
  local watch=$!
  cd "$work/pgjdbc/pgjdbc"
  timeout $limit java -Xmx1536m -Dserver=127.0.0.1 -Dport="$port" -Ddatabase=$database -Dusername=$user -Dpassword=$user \
    -DprivilegedUser=$user -DprivilegedPassword=$user -cp "$path:$classes:src/test/resources:$out/driver" \
    org.junit.platform.console.ConsoleLauncher --scan-classpath "$classes" --include-classname '.*' \
    --exclude-package org.postgresql.replication --config junit.jupiter.execution.timeout.default=60s \
    --reports-dir "$out/reports" --details tree --disable-ansi-colors --disable-banner || true
  kill $watch
}

umask 022
rm -rf "$out"
mkdir -p "$out"
chown postgres "$out"
[ -e "$work/lib/libpq_pipeline" ] || build
start_server
case $suite in regress | effect) "prepare_$suite" ;; esac
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
case $suite in
  pipeline | pg | postgresjs)
    echo "$(grep -c '^passed: ' "$out/log") passed, $(grep -c '^failed: ' "$out/log") failed"
    ;;
esac
