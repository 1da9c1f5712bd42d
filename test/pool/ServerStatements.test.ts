import { assert, describe, it } from "@effect/vitest"
import { ServerStatements } from "../../src/pool/ServerStatements.ts"

const withStatements = (...keys: ReadonlyArray<string>) => {
  const statements = new ServerStatements()
  for (const key of keys) statements.add(key, `name of ${key}`)
  return statements
}
const any = () => true

describe("a server connection's statements", () => {
  it("go in the order in which they came, but for those that were used meanwhile", () => {
    const statements = withStatements("a", "b", "c", "d")
    assert.strictEqual(statements.use("a"), "name of a")
    statements.use("c")
    assert.deepStrictEqual(statements.takeUnused(1, any), [["b", "name of b"]])
    // What was used has had its second chance.
    assert.deepStrictEqual(statements.takeUnused(2, any), [
      ["d", "name of d"],
      ["a", "name of a"]
    ])
    assert.deepStrictEqual(statements.names, ["name of c"])
  })

  it("go although all were used, if somebody must, and never those that may not", () => {
    const statements = withStatements("a", "b", "c")
    for (const key of ["a", "b", "c"]) statements.use(key)
    assert.deepStrictEqual(
      statements.takeUnused(3, (key) => key !== "b"),
      [
        ["a", "name of a"],
        ["c", "name of c"]
      ]
    )
    assert.deepStrictEqual([statements.size, statements.nameOf("b")], [1, "name of b"])
  })

  it("are not known any more when a change of the schema has broken them, but are to be closed", () => {
    const statements = withStatements("a", "b")
    statements.breakAll()
    assert.deepStrictEqual([statements.size, statements.use("a")], [0, undefined])
    assert.deepStrictEqual(statements.broken, ["name of a", "name of b"])
  })
})
