/**
 * `encpass`: the password of a PostgreSQL role in, the `dest_pass_enc` of a row out.
 *
 * How to reach KMS is taken from the flags, then from the environment's `PERSEUS_AWSSETTINGS_*`, then from the
 * configuration file, which need not be there where the first two say which key and which region.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Kms from "../../tenant/KmsDecrypt.ts"
import * as Ask from "./Ask.ts"
import { CommandFailed, fromError } from "./CommandFailed.ts"
import { Environment, loadConfig, perseus } from "./shared.ts"

const setting = (name: string, metavar: string, description: string) =>
  Flag.String(name).pipe(Flag.withMetavar(metavar), Flag.withDescription(description), Flag.optional)

const settingFlags = {
  accessKeyId: setting("access-key-id", "<id>", "AWSSettings.AccessKeyId"),
  secretAccessKey: Flag.Redacted("secret-access-key").pipe(
    Flag.withMetavar("<secret>"),
    Flag.withDescription("AWSSettings.SecretAccessKey; visible in the process list"),
    Flag.optional
  ),
  region: setting("region", "<region>", "AWSSettings.Region"),
  endpoint: setting("endpoint", "<url>", "AWSSettings.Endpoint; blank is AWS's own"),
  keyArn: setting("key-arn", "<arn>", "AWSSettings.KMSKeyARN")
}

type SettingFlags = Command.Command.Config.Infer<typeof settingFlags>

export const encpass = Command.make(
  "encpass",
  {
    passwd: Flag.Redacted("passwd").pipe(
      Flag.withMetavar("<password>"),
      Flag.withDescription("The password; visible in the process list. Without it: asked for, or a line of stdin"),
      Flag.optional
    ),
    ...settingFlags
  },
  Effect.fnUntraced(function* ({ passwd, ...flags }) {
    const settings = yield* resolveSettings(flags)
    const password = yield* Ask.secret({ given: passwd, what: "password", isNew: false })
    yield* Console.log(yield* Effect.mapError(Kms.encrypt(settings, password), fromError))
  })
).pipe(
  Command.withDescription(
    "Encrypt the password of a PostgreSQL role for perseus_auth.dest_pass_enc (KMS, base64) and print the result. " +
      "What no flag gives comes from PERSEUS_AWSSETTINGS_* in the environment, then from the configuration file; the " +
      "file is not read where the key and the region are already known and --config is not given."
  ),
  Command.withShortDescription("Encrypt a PostgreSQL role's password for perseus_auth"),
  Command.withExamples([
    { command: "perseus encpass --config config.json", description: "Type the password unseen" },
    { command: "perseus encpass --key-arn arn:aws:kms:… --region us-east-1 < password.txt", description: "No file" }
  ])
)

const resolveSettings = Effect.fnUntraced(function* (flags: SettingFlags) {
  if (Option.isSome(flags.accessKeyId) !== Option.isSome(flags.secretAccessKey)) {
    return yield* new CommandFailed({ message: "--access-key-id and --secret-access-key go together" })
  }
  const env = yield* Environment
  const given = (flag: Option.Option<string>, variable: string) =>
    Option.getOrElse(flag, () => env[`PERSEUS_AWSSETTINGS_${variable}`])
  const known = {
    accessKeyId: given(flags.accessKeyId, "ACCESSKEYID"),
    secretAccessKey: given(Option.map(flags.secretAccessKey, Redacted.value), "SECRETACCESSKEY"),
    region: given(flags.region, "REGION"),
    endpoint: given(flags.endpoint, "ENDPOINT"),
    keyArn: given(flags.keyArn, "KMSKEYARN")
  }
  const { config } = yield* perseus
  const isFileNeeded = known.keyArn === undefined || known.region === undefined || Option.isSome(config)
  const file = isFileNeeded ? Kms.settingsFrom((yield* loadConfig).AWSSettings) : undefined
  return {
    accessKeyId: known.accessKeyId ?? file?.accessKeyId ?? "",
    secretAccessKey:
      known.secretAccessKey === undefined
        ? (file?.secretAccessKey ?? Redacted.make(""))
        : Redacted.make(known.secretAccessKey),
    region: known.region ?? file?.region ?? "",
    endpoint: known.endpoint ?? file?.endpoint ?? "",
    keyArn: known.keyArn ?? file?.keyArn ?? ""
  }
})
