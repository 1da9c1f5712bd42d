/* In the place of postgres.js' own tests/test.js: goes on after a failure, and says how each test went. */
import { exec } from "./bootstrap.js"

const tests = []

export const t = (name, options, fn) => {
  tests.push(typeof options === "function" ? { name, fn: options } : { name, fn, ...options })
}
export const nt = () => {}
export const ot = t

// A test that failed has not dropped what it made, which the next one makes again.
const LEFT =
  "SET lock_timeout = '2s'; DROP TABLE IF EXISTS test, tester, x, users, students, postgres.test; " +
  "DROP SCHEMA IF EXISTS a CASCADE; DROP PUBLICATION IF EXISTS alltables"

const run = async ({ name, fn, timeout = 5 }) => {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("timed out")), timeout * 1000)
  })
  try {
    const [expected, got] = await Promise.race([fn().then((both) => Promise.all(both)), late])
    if (expected !== got) throw new Error(`expected ${expected}, got ${got}`)
    process.stdout.write(`passed: ${name}\n`)
  } catch (error) {
    process.stdout.write(`failed: ${name}: ${error?.stack ?? error}\n`)
    exec("psql", ["-q", "-d", "postgres_js_test", "-c", LEFT])
  } finally {
    clearTimeout(timer)
  }
}

// What a test that has timed out still gets is its own affair.
process.on("unhandledRejection", (error) => process.stderr.write(`${error?.stack ?? error}\n`))

// When tests/index.js has named them all.
setImmediate(async () => {
  for (const test of tests) await run(test)
  process.exit()
})
