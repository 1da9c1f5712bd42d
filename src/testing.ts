/**
 * For the tests of programs that embed Perseus: its surroundings in memory, under the test's clock and the test's faults.
 */
export * as MemoryAuthRepo from "./testing/MemoryAuthRepo.ts"
export * as MemoryClient from "./testing/MemoryClient.ts"
export * as MemoryKms from "./testing/MemoryKms.ts"
export * as MemoryNetwork from "./testing/MemoryNetwork.ts"
export * as MemoryPasswordHash from "./testing/MemoryPasswordHash.ts"
export * as MemoryPostgres from "./testing/MemoryPostgres.ts"
