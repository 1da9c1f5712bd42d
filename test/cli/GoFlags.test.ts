import { assert, describe, it } from "@effect/vitest"
import { normalise } from "../../src/cli/GoFlags.ts"

const same = (argv: ReadonlyArray<string>) => assert.deepStrictEqual(normalise(argv), argv)

describe("GoFlags", () => {
  it("reads the daemon's flag in each of Go's forms", () => {
    for (const form of [["-config", "f.json"], ["--config", "f.json"], ["-config=f.json"], ["--config=f.json"]]) {
      assert.deepStrictEqual(normalise(form), ["--config=f.json"])
    }
  })

  it("reads the flags of encpass as the Go README writes them", () => {
    const argv = ["encpass", "-access_key_id=AK", "-endpoint=", "-key_arn=arn:x", "-passwd=p", "-region", "eu-west-1"]
    assert.deepStrictEqual(normalise([...argv, "-secret_access_key", "s"]), [
      "encpass",
      "--access-key-id=AK",
      "--endpoint=",
      "--key-arn=arn:x",
      "--passwd=p",
      "--region=eu-west-1",
      "--secret-access-key=s"
    ])
  })

  it("takes underscores and dashes in a name for the same, with one dash or two", () => {
    for (const name of ["-key_arn", "--key_arn", "-key-arn", "--key-arn"]) {
      assert.deepStrictEqual(normalise([`${name}=a_b-c`]), ["--key-arn=a_b-c"])
    }
  })

  it("leaves a value as it is, whatever it looks like", () => {
    assert.deepStrictEqual(normalise(["-password=-a_b=--c_d\n-e"]), ["--password=-a_b=--c_d\n-e"])
    for (const value of ["-x", "--help", "--", "-5", "", "-a_b"]) {
      assert.deepStrictEqual(normalise(["-password", value, "-config", "f"]), [`--password=${value}`, "--config=f"])
    }
  })

  it("leaves alone single letters, negative numbers, lone dashes and words", () => {
    same(["-h", "-c", "a_b", "-5", "-0.5", "-", "tenant", "not_a_flag", "---x"])
  })

  it("leaves alone what follows --", () => {
    assert.deepStrictEqual(normalise(["-once", "--", "-config", "a_b", "-x_y"]), [
      "--once",
      "--",
      "-config",
      "a_b",
      "-x_y"
    ])
  })

  it("leaves a flag without its value for the parser to refuse", () => {
    same(["genhash", "--password"])
  })

  it("changes nothing when it is applied to its own result", () => {
    const argv = ["encpass", "-key_arn", "a_b", "-passwd", "--", "-yes", "-h", "--", "-config"]
    same(normalise(argv))
  })
})
