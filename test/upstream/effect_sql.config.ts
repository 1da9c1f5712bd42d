/** vitest for the suite of @effect/sql-pg, as its repository has it: a database that is there is its container. */
import path from "node:path"
import { defineConfig } from "vitest/config"

const here = process.cwd()

export default defineConfig({
  root: here,
  resolve: {
    alias: {
      "@testcontainers/postgresql": path.join(import.meta.dirname, "effect_sql_container.ts"),
      "@effect/sql-pg": path.join(here, "sql-pg/dist/index.js")
    }
  },
  test: {
    include: ["test/**/*.integration.test.ts"],
    sequence: { concurrent: true },
    maxWorkers: 2
  }
})
