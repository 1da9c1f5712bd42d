import { describe, it } from "@effect/vitest"
import { runSeeds } from "./seeds.ts"

// 10 000 seeds in two files, which vitest runs side by side.
describe("whatever clients and servers do, and when, part 1 of 2", () => {
  it("no tenant sees another, no connection is lost, every client is answered", { timeout: 240_000 }, () => {
    runSeeds(1, 5000)
  })
})
