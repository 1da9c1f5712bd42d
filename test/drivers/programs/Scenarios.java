import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.Reader;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TimeZone;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.util.PSQLException;

/**
 * pgjdbc: a protocol implementation of its own. Every statement is prepared by name from its first use on, and its results
 * come in binary from the second.
 */
public final class Scenarios {
  static final int CLIENTS = 4;
  static final int ROUNDS = 30;
  static final String LARGE = "0123456789".repeat(524288);
  static final String SCHEMA = System.getenv("SCHEMA");
  static final String SCHEMA_OPTION = "-c " + System.getenv("SCHEMA_PARAMETER") + "=" + SCHEMA;

  // ---- connections

  static Connection connectWith(String... properties) throws SQLException {
    Properties all = new Properties();
    all.setProperty("user", System.getenv("PGUSER"));
    all.setProperty("password", System.getenv("PGPASSWORD"));
    all.setProperty("sslmode", "disable");
    all.setProperty("prepareThreshold", "1");
    for (int i = 0; i < properties.length; i += 2) all.setProperty(properties[i], properties[i + 1]);
    String place = System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
    return DriverManager.getConnection("jdbc:postgresql://" + place, all);
  }

  /** currentSchema is sent as search_path, which PostgreSQL knows too. */
  static Connection connect(String... properties) throws SQLException {
    String[] all = Arrays.copyOf(properties, properties.length + 2);
    all[properties.length] = "currentSchema";
    all[properties.length + 1] = SCHEMA;
    return connectWith(all);
  }

  static void execute(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
    }
  }

  static List<Object> column(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
      List<Object> values = new ArrayList<>();
      while (rows.next()) values.add(rows.getObject(1));
      return values;
    }
  }

  static Object value(Connection connection, String sql) throws SQLException {
    return column(connection, sql).get(0);
  }

  interface Act {
    void run() throws Exception;
  }

  static String errorOf(Act act) throws Exception {
    try {
      act.run();
      return null;
    } catch (SQLException error) {
      return error.getSQLState();
    }
  }

  // ---- what is said

  static String json(Object value) {
    if (value == null || value instanceof Number || value instanceof Boolean) return String.valueOf(value);
    if (value instanceof List<?> list) return "[" + String.join(",", list.stream().map(Scenarios::json).toList()) + "]";
    if (value instanceof Map<?, ?> map) {
      List<String> entries = new ArrayList<>();
      map.forEach((key, entry) -> entries.add(json(key) + ":" + json(entry)));
      return "{" + String.join(",", entries) + "}";
    }
    if (value instanceof Json text) return text.text();
    StringBuilder quoted = new StringBuilder("\"");
    for (char c : value.toString().toCharArray()) {
      if (c == '"' || c == '\\') quoted.append('\\').append(c);
      else if (c < ' ') quoted.append(String.format("\\u%04x", (int) c));
      else quoted.append(c);
    }
    return quoted.append('"').toString();
  }

  /** What is JSON already. */
  record Json(String text) {}

  static Map<String, Object> map(Object... entries) {
    Map<String, Object> map = new LinkedHashMap<>();
    for (int i = 0; i < entries.length; i += 2) map.put((String) entries[i], entries[i + 1]);
    return map;
  }

  /** A scenario that fails says why, and the next one is done all the same. */
  static void say(String scenario, Callable<Object> play) {
    Object result;
    try {
      result = play.call();
    } catch (Exception error) {
      StringWriter trace = new StringWriter();
      error.printStackTrace(new java.io.PrintWriter(trace));
      result = trace.toString();
    }
    byte[] line = (json(List.of(scenario, result)) + "\n").getBytes(StandardCharsets.UTF_8);
    System.out.write(line, 0, line.length);
    System.out.flush();
  }

  static String digest(String text) throws Exception {
    return HexFormat.of().formatHex(MessageDigest.getInstance("MD5").digest(text.getBytes(StandardCharsets.UTF_8)));
  }

  // ---- the scenarios

  static Object connectScenario() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement();
        ResultSet rows = statement.executeQuery("SELECT current_schema(), name FROM home")) {
      rows.next();
      return map("schema", rows.getString(1), "home", rows.getString(2));
    }
  }

  static Object connectOtherwise() throws SQLException {
    try (Connection connection = connectWith("options", SCHEMA_OPTION)) {
      return value(connection, "SELECT current_schema()");
    }
  }

  static Object reconnect() throws SQLException {
    List<Object> seen = new ArrayList<>();
    for (int i = 0; i < 5; i++) {
      try (Connection connection = connect()) {
        seen.add(value(connection, "SELECT current_schema()"));
      }
    }
    return seen;
  }

  /** The time zone is the program's own. pgjdbc itself says DateStyle=ISO at startup, behind what stands in options. */
  static Object settings() throws SQLException {
    TimeZone before = TimeZone.getDefault();
    TimeZone.setDefault(TimeZone.getTimeZone("Asia/Tokyo"));
    try (Connection connection = connect("ApplicationName", "drivers", "options", "-c DateStyle=ISO,DMY");
        PreparedStatement statement = connection.prepareStatement(
            "SELECT current_setting('application_name'), current_setting('TimeZone'), current_setting('DateStyle'), "
                + "'2026-02-03 04:05:06Z'::timestamptz::text")) {
      List<Object> seen = new ArrayList<>();
      for (int i = 0; i < 3; i++) {
        try (ResultSet rows = statement.executeQuery()) {
          rows.next();
          seen.add(map("application_name", rows.getString(1), "TimeZone", rows.getString(2),
              "DateStyle", rows.getString(3), "text", rows.getString(4)));
        }
      }
      return seen;
    } finally {
      TimeZone.setDefault(before);
    }
  }

  static Object isolation() throws SQLException {
    try (Connection connection = connect()) {
      connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
      connection.setAutoCommit(false);
      Object first = value(connection, "SHOW transaction_isolation");
      connection.commit();
      return List.of(first, value(connection, "SHOW transaction_isolation"));
    }
  }

  static Object types() throws SQLException {
    try (Connection connection = connect();
        PreparedStatement statement = connection.prepareStatement(
            "SELECT ?::int8, ?::numeric, ?::timestamptz, ?::bytea, ?::int[], ?::text[], ?::jsonb, ?::text, ?::text")) {
      Object seen = null;
      // In text first, then in binary.
      for (int i = 0; i < 3; i++) {
        statement.setLong(1, Long.MAX_VALUE);
        statement.setBigDecimal(2, new BigDecimal("12345678901234567890.0123456789"));
        statement.setObject(3, OffsetDateTime.parse("2026-02-03T04:05:06.789Z"));
        statement.setBytes(4, new byte[] {0, (byte) 0xff, 0x5c, 0x27});
        statement.setArray(5, connection.createArrayOf("int4", new Integer[] {1, null, 3}));
        statement.setArray(6, connection.createArrayOf("text", new String[] {"a\"b", "c,d", "", null}));
        statement.setString(7, "{\"a\": [1, {\"b\": null}]}");
        statement.setNull(8, Types.VARCHAR);
        statement.setString(9, "Grüße, 𝄞 und 日本");
        try (ResultSet row = statement.executeQuery()) {
          row.next();
          Object now = map(
              "int8", Long.toString(row.getLong(1)),
              "numeric", row.getBigDecimal(2).toPlainString(),
              "timestamptz", row.getObject(3, OffsetDateTime.class).toInstant().toString(),
              "bytea", HexFormat.of().formatHex(row.getBytes(4)),
              "ints", elements(row.getArray(5)),
              "texts", elements(row.getArray(6)),
              "json", new Json(row.getString(7)),
              "nothing", row.getString(8),
              "text", row.getString(9));
          if (seen != null && !seen.equals(now)) return List.of(seen, now);
          seen = now;
        }
      }
      return seen;
    }
  }

  static List<Object> elements(Array array) throws SQLException {
    return Arrays.asList((Object[]) array.getArray());
  }

  static Object ownTypes() throws SQLException {
    try (Connection connection = connect()) {
      execute(connection, "CREATE TYPE mood AS ENUM ('sad', 'happy')");
      try (Statement statement = connection.createStatement();
          ResultSet row = statement.executeQuery("SELECT 'happy'::mood, ARRAY['sad', 'happy']::mood[]")) {
        row.next();
        List<Object> moods = elements(row.getArray(2)).stream().map(mood -> (Object) mood.toString()).toList();
        return List.of(row.getObject(1).toString(), moods);
      }
    }
  }

  static Object errors() throws Exception {
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE errors (id int PRIMARY KEY); INSERT INTO errors VALUES (1)");
      Map<String, Object> seen = map(
          "syntax", errorOf(() -> execute(connection, "SELEC 1")),
          "division", errorOf(() -> execute(connection, "SELECT 1 / 0")),
          "table", errorOf(() -> execute(connection, "SELECT * FROM nowhere")));
      try {
        execute(connection, "INSERT INTO errors VALUES (1)");
      } catch (PSQLException error) {
        seen.put("unique", error.getSQLState());
        seen.put("constraint", error.getServerErrorMessage().getConstraint());
      }
      return seen;
    }
  }

  static Object transactions() throws SQLException {
    try (Connection connection = connect()) {
      String ids = "SELECT id FROM transactions ORDER BY id";
      execute(connection, "CREATE TABLE transactions (id int)");
      connection.setAutoCommit(false);
      execute(connection, "INSERT INTO transactions VALUES (1)");
      connection.commit();
      Object committed = column(connection, ids);
      execute(connection, "INSERT INTO transactions VALUES (2)");
      connection.rollback();
      Object rolledBack = column(connection, ids);
      execute(connection, "INSERT INTO transactions VALUES (3)");
      Savepoint here = connection.setSavepoint();
      execute(connection, "INSERT INTO transactions VALUES (4)");
      connection.rollback(here);
      execute(connection, "INSERT INTO transactions VALUES (5)");
      connection.commit();
      return map("committed", committed, "rolledBack", rolledBack, "savepoint", column(connection, ids));
    }
  }

  static Object failedTransaction() throws Exception {
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE failures (id int PRIMARY KEY)");
      connection.setAutoCommit(false);
      execute(connection, "INSERT INTO failures VALUES (1)");
      String error = errorOf(() -> execute(connection, "INSERT INTO failures VALUES (1)"));
      String within = errorOf(() -> execute(connection, "SELECT 1"));
      connection.rollback();
      execute(connection, "INSERT INTO failures VALUES (7)");
      connection.commit();
      return map("error", error, "within", within, "after", column(connection, "SELECT id FROM failures"));
    }
  }

  /** By a savepoint that pgjdbc sets before each statement. */
  static Object errorsForgiven() throws Exception {
    try (Connection connection = connect("autosave", "always")) {
      execute(connection, "CREATE TABLE forgiven (id int PRIMARY KEY)");
      connection.setAutoCommit(false);
      execute(connection, "INSERT INTO forgiven VALUES (1)");
      String error = errorOf(() -> execute(connection, "INSERT INTO forgiven VALUES (1)"));
      execute(connection, "INSERT INTO forgiven VALUES (2)");
      connection.commit();
      return map("error", error, "after", column(connection, "SELECT id FROM forgiven ORDER BY id"));
    }
  }

  static Object introspection() throws SQLException {
    try (Connection connection = connect()) {
      execute(connection, "CREATE TABLE described (id int PRIMARY KEY, name text)");
      List<Object> columns = new ArrayList<>();
      try (ResultSet rows = connection.getMetaData().getColumns(null, connection.getSchema(), "described", null)) {
        while (rows.next()) columns.add(rows.getString("COLUMN_NAME") + " " + rows.getString("TYPE_NAME"));
      }
      List<Object> keys = new ArrayList<>();
      try (ResultSet rows = connection.getMetaData().getPrimaryKeys(null, connection.getSchema(), "described")) {
        while (rows.next()) keys.add(rows.getString("COLUMN_NAME"));
      }
      return map("columns", columns, "keys", keys, "valid", connection.isValid(5));
    }
  }

  static Object statements(String... properties) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(CLIENTS);
    try {
      List<Future<Long>> sums = new ArrayList<>();
      for (int i = 0; i < CLIENTS; i++) {
        int client = i;
        sums.add(threads.submit(() -> {
          long sum = 0;
          try (Connection connection = connect(properties)) {
            for (int round = 0; round < ROUNDS; round++) {
              int factor = new int[] {1, 10, 100}[round % 3];
              // Closed each time; pgjdbc keeps it prepared for the next of the same text.
              try (PreparedStatement statement = connection.prepareStatement("SELECT ? * " + factor + " + " + client)) {
                statement.setInt(1, round);
                try (ResultSet rows = statement.executeQuery()) {
                  rows.next();
                  sum += rows.getInt(1);
                }
              }
            }
          }
          return sum;
        }));
      }
      List<Object> all = new ArrayList<>();
      for (Future<Long> sum : sums) all.add(sum.get());
      return all;
    } finally {
      threads.shutdown();
    }
  }

  static Object cursor() throws SQLException {
    try (Connection connection = connect("defaultRowFetchSize", "100")) {
      connection.setAutoCommit(false);
      long rows = 0;
      long sum = 0;
      Object between = null;
      try (Statement statement = connection.createStatement();
          ResultSet portions = statement.executeQuery("SELECT generate_series(1, 1000)")) {
        while (portions.next()) {
          rows++;
          sum += portions.getLong(1);
          if (rows == 100) between = value(connection, "SELECT 10");
        }
      }
      connection.commit();
      return map("rows", rows, "sum", sum, "between", between);
    }
  }

  static void insert(Connection connection, List<Integer> ids) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement("INSERT INTO batch VALUES (?)")) {
      for (int id : ids) {
        statement.setInt(1, id);
        statement.addBatch();
      }
      statement.executeBatch();
      connection.commit();
    } catch (SQLException error) {
      connection.rollback();
      throw error;
    }
  }

  static Object batch() throws Exception {
    Object seen = null;
    for (String rewrite : List.of("false", "true")) {
      try (Connection connection = connect("reWriteBatchedInserts", rewrite)) {
        execute(connection, "DROP TABLE IF EXISTS batch; CREATE TABLE batch (id int PRIMARY KEY)");
        connection.setAutoCommit(false);
        insert(connection, java.util.stream.IntStream.rangeClosed(1, 500).boxed().toList());
        Object rows = value(connection, "SELECT count(*) FROM batch");
        Object sum = value(connection, "SELECT sum(id) FROM batch");
        String error = errorOf(() -> insert(connection, List.of(501, 1, 502)));
        Object now = map("rows", rows, "sum", sum, "error", error, "left", value(connection, "SELECT count(*) FROM batch"));
        if (seen != null && !seen.equals(now)) return List.of(seen, now);
        seen = now;
      }
    }
    return seen;
  }

  static Object copy() throws Exception {
    try (Connection connection = connect()) {
      CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
      String copyIn = "COPY copied FROM STDIN";
      String count = "SELECT count(*) FROM copied";
      execute(connection, "CREATE TABLE copied (id int, name text)");
      StringBuilder lines = new StringBuilder();
      for (int id = 1; id <= 1000; id++) lines.append(id).append("\tr").append(id).append('\n');
      copies.copyIn(copyIn, new StringReader(lines.toString()));
      Object rows = value(connection, count);
      ByteArrayOutputStream out = new ByteArrayOutputStream();
      copies.copyOut("COPY (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT", out);
      Reader wrong = new StringReader("x\ty\n".repeat(50000));
      String broken = "COPY (SELECT 1 / (500 - i) FROM generate_series(1, 1000) i) TO STDOUT";
      return map(
          "rows", rows,
          "out", out.toString(StandardCharsets.UTF_8).lines().toList(),
          "refused", errorOf(() -> copies.copyIn(copyIn, wrong)),
          "abandoned", abandon(copies, copyIn),
          "brokenOff", errorOf(() -> copies.copyOut(broken, new ByteArrayOutputStream())),
          "left", value(connection, count));
    }
  }

  /** pgjdbc throws what broke its source, and hides what the server said of it. */
  static Object abandon(CopyManager copies, String copyIn) throws SQLException {
    InputStream source = new InputStream() {
      private final byte[] line = "2001\tx\n".getBytes(StandardCharsets.UTF_8);
      private int at = 0;

      @Override
      public int read() throws IOException {
        if (at == line.length) throw new IOException("no more of this");
        return line[at++];
      }

      @Override
      public int read(byte[] buffer, int offset, int length) throws IOException {
        if (at == line.length) throw new IOException("no more of this");
        System.arraycopy(line, 0, buffer, offset, line.length);
        at = line.length;
        return line.length;
      }
    };
    try {
      return copies.copyIn(copyIn, source);
    } catch (IOException error) {
      return "57014";
    }
  }

  static Object cancel() throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(1);
    try (Connection connection = connect(); Connection other = connect(); Statement statement = connection.createStatement()) {
      String sleep = "SELECT pg_sleep(20) /* pgjdbc */";
      Future<String> sleeper = threads.submit(() -> errorOf(() -> statement.execute(sleep)));
      String running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '" + sleep + "'";
      while (value(other, running).equals(0L)) Thread.onSpinWait();
      statement.cancel();
      return map("error", sleeper.get(), "after", value(connection, "SELECT 1"));
    } finally {
      threads.shutdown();
    }
  }

  static Object queryTimeout() throws Exception {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.setQueryTimeout(1);
      String error = errorOf(() -> statement.execute("SELECT pg_sleep(20)"));
      return map("error", error, "after", value(connection, "SELECT 1"));
    }
  }

  static Object large() throws Exception {
    try (Connection connection = connect(); PreparedStatement statement = connection.prepareStatement("SELECT md5(?)")) {
      statement.setString(1, LARGE);
      try (ResultSet row = statement.executeQuery()) {
        row.next();
        String received = (String) value(connection, "SELECT repeat('0123456789', 524288)");
        return map("sent", row.getString(1), "received", digest(received));
      }
    }
  }

  static Object manyRows() throws SQLException {
    try (Connection connection = connect()) {
      List<Object> rows = column(connection, "SELECT generate_series(1, 100000)");
      return map("rows", rows.size(), "sum", rows.stream().mapToLong(row -> ((Number) row).longValue()).sum());
    }
  }

  static Object severalStatements() throws Exception {
    Object seen = null;
    for (String mode : List.of("simple", "extended")) {
      try (Connection connection = connect("preferQueryMode", mode)) {
        String count = "SELECT count(*) FROM several";
        execute(connection, "DROP TABLE IF EXISTS several; CREATE TABLE several (id int)");
        execute(connection, "INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)");
        Object rows = value(connection, count);
        String error = errorOf(() -> execute(connection, "INSERT INTO several VALUES (3); SELECT 1 / 0"));
        Object now = map("rows", rows, "error", error, "left", value(connection, count));
        if (seen != null && !seen.equals(now)) return List.of(seen, now);
        seen = now;
      }
    }
    return seen;
  }

  static Object emptyQuery() throws SQLException {
    try (Connection connection = connect()) {
      for (String empty : List.of("", " ; ")) execute(connection, empty);
      return value(connection, "SELECT 1");
    }
  }

  static Object notices() throws SQLException {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.execute("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$");
      List<Object> seen = new ArrayList<>();
      for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning()) {
        seen.add(warning.getMessage());
      }
      return seen;
    }
  }

  public static void main(String[] arguments) {
    say("connect", Scenarios::connectScenario);
    say("connect otherwise", Scenarios::connectOtherwise);
    say("reconnect", Scenarios::reconnect);
    say("settings", Scenarios::settings);
    say("isolation", Scenarios::isolation);
    say("types", Scenarios::types);
    say("own types", Scenarios::ownTypes);
    say("errors", Scenarios::errors);
    say("transactions", Scenarios::transactions);
    say("failed transaction", Scenarios::failedTransaction);
    say("errors forgiven", Scenarios::errorsForgiven);
    say("introspection", Scenarios::introspection);
    say("statements", Scenarios::statements);
    say("few statements kept", () -> statements("preparedStatementCacheQueries", "2"));
    say("cursor", Scenarios::cursor);
    say("batch", Scenarios::batch);
    say("copy", Scenarios::copy);
    say("cancel", Scenarios::cancel);
    say("query timeout", Scenarios::queryTimeout);
    say("large", Scenarios::large);
    say("many rows", Scenarios::manyRows);
    say("several statements", Scenarios::severalStatements);
    say("empty query", Scenarios::emptyQuery);
    say("notices", Scenarios::notices);
  }
}
