/**
 * The SQLSTATEs that Perseus itself sends or looks for, by the names of PostgreSQL's appendix "Error Codes".
 */
export const SqlState = {
  successfulCompletion: "00000",
  unableToConnect: "08001",
  connectionFailure: "08006",
  protocolViolation: "08P01",
  featureNotSupported: "0A000",
  invalidTransactionTermination: "25000",
  inFailedTransaction: "25P02",
  idleInTransactionTimeout: "25P03",
  undefinedPreparedStatement: "26000",
  invalidAuthorization: "28000",
  invalidPassword: "28P01",
  undefinedDatabase: "3D000",
  invalidName: "42602",
  duplicatePreparedStatement: "42P05",
  tooManyConnections: "53300",
  configurationLimitExceeded: "53400",
  adminShutdown: "57P01",
  cannotConnectNow: "57P03",
  queryCanceled: "57014",
  systemError: "58000"
} as const
