import { assert, describe, it } from "@effect/vitest"
import { CommandTags } from "../../src/session/CommandTags.ts"

/** As it lies in the middle of a chunk. */
const read = (tag: string) => {
  const bytes = Buffer.from(`SET\0${tag}\0SELECT 1\0`)
  return CommandTags.read(bytes, 4, 4 + tag.length + 1)
}

describe("CommandTags.read", () => {
  it("takes for harmless what leaves the session as it was", () => {
    for (const tag of [
      ..."SELECT 1,INSERT 0 1,UPDATE 3,DELETE 0,MERGE 2,BEGIN,START TRANSACTION,COMMIT,ROLLBACK,SAVEPOINT".split(","),
      ..."RELEASE,COPY 5,FETCH 1,MOVE 1,CLOSE CURSOR,CLOSE CURSOR ALL,EXPLAIN,SHOW,VACUUM,ANALYZE,NOTIFY".split(","),
      ..."LOCK TABLE,TRUNCATE TABLE".split(",")
    ]) {
      assert.strictEqual(read(tag), CommandTags.harmless, tag)
    }
  })

  it("takes for unknown whatever may leave something behind", () => {
    for (const tag of [
      ..."SET,RESET,SET CONSTRAINTS,PREPARE,PREPARE TRANSACTION,EXECUTE,DEALLOCATE,LISTEN,UNLISTEN,LOAD".split(","),
      ..."DECLARE CURSOR,CREATE TABLE,CREATE TABLE AS,DROP TABLE,ALTER ROLE,DO,CALL,CLUSTER".split(","),
      ..."DISCARD PLANS,DISCARD TEMP,DISCARD SEQUENCES,GRANT,REINDEX,REFRESH MATERIALIZED VIEW,CHECKPOINT".split(","),
      ..."CREATE FUNCTION,SECURITY LABEL,IMPORT FOREIGN SCHEMA,discard all,select 1".split(",")
    ]) {
      assert.strictEqual(read(tag), CommandTags.unknown, tag)
    }
  })

  it("knows the two that drop all statements, and nothing that only begins like them", () => {
    assert.strictEqual(read("DISCARD ALL"), CommandTags.dropsStatements)
    assert.strictEqual(read("DEALLOCATE ALL"), CommandTags.dropsStatements)
    for (const tag of ["DISCARD ALLX", "DEALLOCATE ALL 1", "DISCARD", "DEALLOCATE"]) {
      assert.strictEqual(read(tag), CommandTags.unknown, tag)
    }
  })

  it("reads no byte outside of the tag", () => {
    const bytes = Buffer.from("SELECT\0")
    for (let end = 0; end < 4; end++) assert.strictEqual(CommandTags.read(bytes, 0, end), CommandTags.unknown)
    for (const tag of ["", "A", "DO"]) assert.strictEqual(read(tag), CommandTags.unknown, tag)
  })
})
