import { assert, describe, it } from "@effect/vitest"
import { readdirSync, readFileSync } from "node:fs"
import { dirname, posix } from "node:path"
import { fileURLToPath } from "node:url"

const src = fileURLToPath(new URL("../src/", import.meta.url))

/** A comment, a string, or the text of a template up to its end or to an expression in it. */
const quoted =
  /\/\*[^]*?\*\/|(?<!\\)\/\/[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\$]|\\[^]|\$(?!\{))*(?:`|\$\{)/y
const restOfTemplate = /\}(?:[^`\\$]|\\[^]|\$(?!\{))*(?:`|\$\{)/y

/**
 * The source without comments and without what stands in quotes, so that no word in them is taken for code; expressions in
 * templates stay.
 */
const codeOf = (text: string): string => {
  let code = ""
  /** For each template around: the braces that are open in its expression. */
  const templates: Array<number> = []
  for (let at = 0; at < text.length;) {
    const character = text[at]!
    const atEndOfExpression = character === "}" && templates.at(-1) === 0
    const pattern = atEndOfExpression ? restOfTemplate : quoted
    pattern.lastIndex = at
    const found = pattern.exec(text)?.[0]
    if (found === undefined) {
      if (templates.length > 0 && character === "{") templates.push(templates.pop()! + 1)
      if (templates.length > 0 && character === "}") templates.push(templates.pop()! - 1)
      code += character
      at++
      continue
    }
    if (atEndOfExpression) templates.pop()
    if (found.endsWith("${")) templates.push(0)
    code += found.startsWith("/") ? " " : '""'
    at += found.length
  }
  return code
}

interface Import {
  /** As written, or the path below src of a file of ours. */
  readonly target: string
  readonly ours: boolean
  /** `import type`: gone before anything runs. */
  readonly typeOnly: boolean
  /** What is imported, as it is called there; `*` for all of it. */
  readonly names: ReadonlyArray<string>
}

const importsOf = (path: string, text: string): ReadonlyArray<Import> =>
  Array.from(
    text.matchAll(/^(?:import|export)\s(type\s)?([^"';]*?)(?:\sfrom\s)?"([^"]+)"$/gm),
    ([, type, clause = "", target = ""]) => {
      const ours = target.startsWith(".")
      const named = /^\{([^}]*)\}$/.exec(clause.trim())?.[1]
      const names =
        named === undefined ? ["*"] : named.split(",").map((name) => name.trim().split(/\s+as\s+/)[0] ?? name)
      const place = ours ? posix.join(dirname(path), target) : target
      return { target: place, ours, typeOnly: type !== undefined, names }
    }
  )

const files = readdirSync(src, { recursive: true, encoding: "utf8" })
  .filter((path) => path.endsWith(".ts"))
  .map((path) => path.replaceAll("\\", "/"))
  .map((path) => {
    const text = readFileSync(`${src}${path}`, "utf8")
    return { path, code: codeOf(text), imports: importsOf(path, text) }
  })

/** The folder of a file below src; the name of one that lies in src itself. */
const roomOf = (path: string): string => path.split("/")[0] ?? path

/** Whom each room may call. Data flow from left to right, and never back: session, tenant, pool, net, protocol. */
const mayImport: Readonly<Record<string, ReadonlyArray<string>>> = {
  protocol: [],
  "errors.ts": ["protocol"],
  net: ["protocol", "errors.ts"],
  config: ["net", "errors.ts"],
  pool: ["net", "protocol", "config", "errors.ts"],
  tenant: ["pool", "net", "protocol", "config", "errors.ts"],
  session: ["tenant", "pool", "net", "protocol", "config", "errors.ts"],
  observability: ["session", "tenant", "pool", "net", "config", "errors.ts", "BuildInfo.ts"],
  admin: ["session", "tenant", "pool", "net", "protocol", "config", "observability", "errors.ts", "BuildInfo.ts"],
  testing: ["tenant", "pool", "net", "protocol", "config", "errors.ts"],
  "BuildInfo.ts": [],
  "testing.ts": ["testing"]
}

/** Who puts things together, and may call whom it likes; but nothing that runs in production calls what is for tests. */
const composers = new Set(["Perseus.ts", "index.ts", "main.ts", "cli"])

const offenders = (pattern: RegExp, where: (path: string) => boolean): ReadonlyArray<string> =>
  files
    .filter(({ path }) => where(path))
    .flatMap(({ code, path }) => Array.from(code.matchAll(pattern), ([found]) => `${path}: ${found}`))

describe("imports", () => {
  it("go from left to right and never back", () => {
    const wrong = files.flatMap(({ imports, path }) => {
      const room = roomOf(path)
      if (composers.has(room)) return []
      const allowed = mayImport[room]
      if (allowed === undefined) return [`${path}: the room ${room} is not in the plan`]
      return imports
        .filter(({ ours, target }) => ours && roomOf(target) !== room && !allowed.includes(roomOf(target)))
        .map(({ target }) => `${path} -> ${target}`)
    })
    assert.deepStrictEqual(wrong, [])
  })

  it("of protocol/ are its own files and node:crypto: no Effect, no failures, no sockets", () => {
    const wrong = files
      .filter(({ path }) => roomOf(path) === "protocol")
      .flatMap(({ imports, path }) =>
        imports
          .filter(({ ours, target }) => (ours ? roomOf(target) !== "protocol" : target !== "node:crypto"))
          .map(({ target }) => `${path} -> ${target}`)
      )
    assert.deepStrictEqual(wrong, [])
  })

  it("lead nowhere in a circle", () => {
    const edges = new Map(
      files.map(({ imports, path }) => [
        path,
        imports.filter(({ ours, typeOnly }) => ours && !typeOnly).map(({ target }) => target)
      ])
    )
    const done = new Set<string>()
    const circles: Array<string> = []
    const visit = (path: string, trail: ReadonlyArray<string>): void => {
      if (trail.includes(path)) circles.push([...trail.slice(trail.indexOf(path)), path].join(" -> "))
      if (done.has(path) || trail.includes(path)) return
      for (const target of edges.get(path) ?? []) visit(target, [...trail, path])
      done.add(path)
    }
    for (const path of edges.keys()) visit(path, [])
    assert.deepStrictEqual(circles, [])
  })

  it("bring nothing that is for tests into the service", () => {
    const wrong = files
      .filter(({ path }) => !["testing", "testing.ts"].includes(roomOf(path)))
      .flatMap(({ imports, path }) =>
        imports
          .filter(({ ours, target }) => ours && ["testing", "testing.ts"].includes(roomOf(target)))
          .map(({ target }) => `${path} -> ${target}`)
      )
    assert.deepStrictEqual(wrong, [])
  })

  it("never take a whole package where a module does: a barrel costs 0.1 to 0.4 s at start", () => {
    const wrong = files.flatMap(({ imports, path }) =>
      imports
        .filter(({ target }) => target === "effect" || target === "@effect/platform-node")
        .map(({ target }) => `${path} -> ${target}`)
    )
    assert.deepStrictEqual(wrong, [])
  })
})

describe("the process", () => {
  it("is touched by main.ts alone; the demo may look what machine it is on and signal the servers that it started", () => {
    const harmless = /^process\.(platform|arch|getuid|kill)$/
    assert.deepStrictEqual(
      offenders(/\bprocess\s*(?:\.|\?\.|\[)\s*\w*/g, (path) => path !== "main.ts").filter((found) => {
        const [path = "", use = ""] = found.split(": ")
        return !(path.startsWith("cli/demo/") && harmless.test(use))
      }),
      []
    )
  })

  it("is read elsewhere for facts alone, by name: its version, its memory and its CPU time", () => {
    const facts = new Set(["version", "memoryUsage", "cpuUsage"])
    const wrong = files.flatMap(({ imports, path }) =>
      imports
        .filter(({ target }) => /^(node:)?process$/.test(target))
        .flatMap(({ names }) => names.filter((name) => !facts.has(name)).map((name) => `${path}: ${name}`))
    )
    assert.deepStrictEqual(wrong, [])
  })

  it("is written to by nobody's console", () => {
    assert.deepStrictEqual(
      offenders(/(?<![.\w])console\s*\./g, () => true),
      []
    )
  })
})

describe("time and chance", () => {
  it("come from Effect's Clock, so that TestClock drives every timeout", () => {
    const clocks =
      /(?<![.\w])(?:setTimeout|setInterval|setImmediate)\s*\(|\bDate\.now\b|\bnew Date\s*\(\s*\)|\bperformance\.now\b/g
    assert.deepStrictEqual(
      // Turns of the event loop are no time.
      offenders(clocks, (path) => path !== "main.ts" && path !== "net/LoopTurns.ts"),
      []
    )
  })

  it("are never guessable: no Math.random", () => {
    assert.deepStrictEqual(
      offenders(/\bMath\.random\b/g, () => true),
      []
    )
  })
})

describe("this test", () => {
  it("sees the files, their imports and their code", () => {
    const byPath = new Map(files.map((file) => [file.path, file]))
    const targets = byPath.get("pool/ServerLogin.ts")?.imports.map(({ target }) => target) ?? []
    for (const target of ["effect/Effect", "node:crypto", "protocol/Backend.ts", "pool/Credential.ts"]) {
      assert.include(targets, target)
    }
    const version = byPath.get("BuildInfo.ts")?.imports.find(({ target }) => target === "node:process")
    assert.deepStrictEqual(version?.names, ["version"])
    assert.match(byPath.get("main.ts")?.code ?? "", /\bprocess\.argv\b/)
    assert.isAbove(files.length, 50)
  })

  it("takes no word in a comment or in quotes for code, and no code for a comment", () => {
    const cases = [
      ['/** Date.now */ f("process.exit // x") // console.log', ' f("") '],
      ['g(\'"\', "http://x"); h()', 'g("", ""); h()'],
      ["`a // ${b({ c: `d ${e} f` })} process.g` + h", '""b({ c: ""e"" })"" + h'],
      ["a.replace(/\\/\\//g, b) + c", "a.replace(/\\/\\//g, b) + c"]
    ] as const
    for (const [text, code] of cases) assert.strictEqual(codeOf(text).replaceAll(/\s+/g, " "), code)
  })
})
