import { assert, describe, it } from "@effect/vitest"
import * as SchemaName from "../../src/tenant/SchemaName.ts"

describe("SchemaName", () => {
  it("accepts any one identifier, quotes, commas and blanks included", () => {
    for (const name of ["tenant", "Tenant 1", 'a"b', "a,b", "a'b", "$users", "_pg_x", "PG_x", " ", "información"]) {
      assert.isNull(SchemaName.check(name), name)
    }
  })

  it("counts 63 bytes in UTF-8, not characters", () => {
    assert.isNull(SchemaName.check("x".repeat(63)))
    assert.isNull(SchemaName.check("é".repeat(31) + "x"))
    assert.strictEqual(SchemaName.check("é".repeat(32)), "it has 64 bytes in UTF-8, and PostgreSQL cuts names after 63")
  })

  it("refuses what PostgreSQL would read as another schema, and says why", () => {
    assert.match(SchemaName.check("") ?? "", /empty/)
    assert.match(SchemaName.check("$user") ?? "", /\$user/)
    assert.match(SchemaName.check("pg_catalog") ?? "", /pg_/)
    assert.match(SchemaName.check("a\0b") ?? "", /NUL/)
    assert.match(SchemaName.check("a\ud800") ?? "", /Unicode/)
  })
})
