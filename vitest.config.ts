import { defineConfig } from "vitest/config"

const elsewhere = ["dist/**", "node_modules/**"]
/** Many inputs, many transactions, many drivers: `npm run test:long`. */
const long = ["canary", "drivers", "fuzz", "hardness", "security"].map((folder) => `test/${folder}/**/*.test.ts`)

const sockets = (...integration: ReadonlyArray<string>) => [
  "test/net/*.test.ts",
  ...integration.map((name) => `test/integration/${name}.test.ts`)
]
const ring = "test/net/Ring.test.ts"
const kernel = "test/net/KernelSockets.test.ts"
const execArgv = ["--no-experimental-ffi"]

export default defineConfig({
  test: {
    projects: [
      { extends: true, test: { name: "core", include: ["test/**/*.test.ts"], exclude: [...elsewhere, ...long] } },
      // As where the kernel has no io_uring, or forbids it.
      {
        extends: true,
        test: {
          name: "epoll",
          include: sockets("release", "sessionFaults"),
          exclude: [...elsewhere, ring],
          setupFiles: ["test/support/withoutRing.ts"]
        }
      },
      // As where Node has no FFI.
      {
        extends: true,
        test: {
          name: "streams",
          include: sockets("sessionFaults", "transcript"),
          exclude: [...elsewhere, ring, kernel],
          execArgv
        }
      },
      { extends: true, test: { name: "long", include: long, exclude: elsewhere } }
    ],
    globalSetup: ["test/integration/globalSetup.ts"],
    // Half of the tests wait for PostgreSQL: with the default of one worker on two cores a core lies idle.
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 60_000
  }
})
