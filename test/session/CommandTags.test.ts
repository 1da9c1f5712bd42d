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
      ..."RELEASE,COPY 5,FETCH 1,MOVE 1,EXPLAIN,SHOW,VACUUM,ANALYZE,NOTIFY,LOCK TABLE,TRUNCATE TABLE".split(",")
    ]) {
      assert.strictEqual(read(tag), CommandTags.harmless, tag)
    }
  })

  it("tells what may have changed settings", () => {
    for (const tag of ["SET", "SET CONSTRAINTS"]) assert.strictEqual(read(tag), CommandTags.set, tag)
    assert.strictEqual(read("RESET"), CommandTags.reset)
  })

  it("takes DISCARD, and a block or a procedure of the client's, for anything", () => {
    for (const tag of ["DISCARD ALL", "DISCARD PLANS", "DISCARD TEMP", "DISCARD SEQUENCES", "DO", "CALL"])
      assert.strictEqual(read(tag), CommandTags.anything, tag)
  })

  it("takes for a trace whatever else may leave something behind", () => {
    for (const tag of [
      ..."PREPARE,PREPARE TRANSACTION,EXECUTE,DEALLOCATE,DEALLOCATE ALL,LISTEN,UNLISTEN,LOAD,CLOSE CURSOR".split(","),
      ..."CLOSE CURSOR ALL,DECLARE CURSOR,CREATE TABLE,CREATE TABLE AS,DROP TABLE,ALTER ROLE,CLUSTER".split(","),
      ..."GRANT,REINDEX,REFRESH MATERIALIZED VIEW,CHECKPOINT,CREATE FUNCTION,SECURITY LABEL".split(","),
      ..."IMPORT FOREIGN SCHEMA,discard all,select 1".split(",")
    ]) {
      assert.strictEqual(read(tag), CommandTags.other, tag)
    }
  })

  it("reads no byte outside of the tag", () => {
    const bytes = Buffer.from("SELECT\0")
    for (let end = 0; end < 3; end++) assert.strictEqual(CommandTags.read(bytes, 0, end), CommandTags.anything)
  })
})

describe("CommandTags.dropsStatements", () => {
  const drops = (tag: string) => {
    const bytes = Buffer.from(`SET\0${tag}\0SELECT 1\0`)
    return CommandTags.dropsStatements(bytes, 4, 4 + tag.length + 1)
  }

  it("knows the two that drop all statements, and nothing that only begins like them", () => {
    for (const tag of ["DISCARD ALL", "DEALLOCATE ALL"]) assert.isTrue(drops(tag), tag)
    for (const tag of ["DISCARD ALLX", "DEALLOCATE ALL 1", "DISCARD", "DEALLOCATE"]) assert.isFalse(drops(tag), tag)
  })
})
