/**
 * What an embedding program imports, and nothing else: the service, its configuration, what may be put in place of its
 * parts, and its failures.
 *
 * Nothing here reads the environment, listens to signals or ends the process: that is the host's.
 */
export { load as loadConfigFile } from "./config/ConfigFile.ts"
export { decode as decodeConfig } from "./config/Decode.ts"
export { LiveConfig } from "./config/LiveConfig.ts"
export type { PerseusConfig } from "./config/PerseusConfig.ts"
export * from "./errors.ts"
export type { Handshake, HandshakeEnd } from "./net/Tls.ts"
export { Network } from "./net/Network.ts"
export type { TlsState, Transport } from "./net/Transport.ts"
export { Perseus } from "./Perseus.ts"
export { type AuthChange, AuthRepo, type AuthRow, type TenantKey } from "./tenant/AuthRepo.ts"
export { KmsDecrypt } from "./tenant/KmsDecrypt.ts"
export { type PasswordClaim, PasswordHash } from "./tenant/PasswordHash.ts"
