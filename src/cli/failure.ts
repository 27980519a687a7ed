/**
 * How a command fails: one sentence on standard error, a hint below it, and an exit code for scripts.
 */
import { describeError, errorCode, MeshError } from '../lib/errors.ts'

/** The exit codes of every command; part of the public interface (docs/cli.md). */
export const exitCodes = {
  ok: 0,
  /** The command failed, or what it checked has problems. */
  failed: 1,
  /** The command line or the configuration is wrong. */
  usage: 2,
  /** No daemon, or no aggregator, answers (LSB: not running). */
  unreachable: 3,
  /** systemd reads 4 of a service as "no permission" and 5 as "not installed", as LSB does. */
  denied: 4,
  notFound: 5,
} as const

/** One of {@link exitCodes}. */
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes]

const CODE_BY_ERROR: Readonly<Record<string, ExitCode>> = {
  HM_ADMIN_UNREACHABLE: exitCodes.unreachable,
  HM_FLEET_UNREACHABLE: exitCodes.unreachable,
  HM_HOST_NOT_FOUND: exitCodes.notFound,
  HM_SERVICE_NOT_FOUND: exitCodes.notFound,
  HM_CONNECTION_NOT_FOUND: exitCodes.notFound,
  EACCES: exitCodes.denied,
  EPERM: exitCodes.denied,
  // Errors in the command line: names, durations, addresses and folders.
  HM_CA_ADDRESS_INVALID: exitCodes.usage,
  HM_CA_DATACENTER_INVALID: exitCodes.usage,
  HM_CA_LIFETIME_INVALID: exitCodes.usage,
  HM_CA_NAME_INVALID: exitCodes.usage,
  HM_CA_OUT_INVALID: exitCodes.usage,
  HM_CERT_SERVICE_INVALID: exitCodes.usage,
}

/** The exit code for anything thrown. */
export function exitCodeOf(thrown: unknown): ExitCode {
  const code = errorCode(thrown)
  if (Object.hasOwn(CODE_BY_ERROR, code)) return CODE_BY_ERROR[code] ?? exitCodes.failed
  if (code.startsWith('HM_CONFIG_') || code.startsWith('HM_USAGE_')) return exitCodes.usage
  return code.endsWith('_DENIED') ? exitCodes.denied : exitCodes.failed
}

/** The documents installed with this program: a host has no other copy. */
const documents = new URL('../../docs/', import.meta.url).pathname

/** Replaces document names in a hint by their paths on this host. */
function withDocumentPaths(hint: string): string {
  return hint.replaceAll(/\bdocs\/(?=[\w-]+\.md\b)/g, documents)
}

/** The text on standard error for anything thrown, newline included. */
export function describeFailure(thrown: unknown): string {
  if (thrown instanceof MeshError) {
    const hint = thrown.hint === undefined ? '' : `  hint: ${withDocumentPaths(thrown.hint)}\n`
    return `hostmesh: ${describeError(thrown)}\n${hint}`
  }
  // An unexpected error: a bug report needs the stack.
  const stack = thrown instanceof Error && thrown.stack !== undefined ? thrown.stack : ''
  return `hostmesh: ${describeError(thrown)}\n${stack === '' ? '' : `${stack}\n`}`
}
