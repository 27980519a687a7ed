/**
 * The commands of a CA's operator: tokens, revocations, rotation, status. A running server executes them, called over
 * a unix socket in its directory; without a server the command executes them itself, under the lock.
 *
 * The socket belongs to the server's user (0600): whoever may use it could read the keys in the directory anyway.
 */
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { systemClock } from '../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import {
  callJson,
  closeServer,
  errorDocument,
  type JsonAnswer,
  readBody,
  readError,
  replyJson,
} from '../lib/json-http.ts'
import { parseJson } from '../lib/json-value.ts'
import { silentLog } from '../lib/log.ts'
import { http } from '../lib/node-http.ts'
import { CertificateAuthority } from './certificate-authority.ts'
import type { CaStatus, RotationStatus } from './status.ts'

const MAX_BYTES = 64 * 1_024 * 1_024
const CALL_TIMEOUT_MS = 30_000

/** How long to retry while another command uses the directory. */
const LOCK_PATIENCE_MS = 10_000

const caCommand = z.discriminatedUnion('do', [
  z.strictObject({
    do: z.literal('token'),
    host: z.string(),
    datacenter: z.string(),
    services: z.array(z.string()),
    ttlMs: z.number(),
    address: z.string().optional(),
  }),
  z.strictObject({
    do: z.literal('revoke'),
    host: z.string().optional(),
    service: z.string().optional(),
    serial: z.string().optional(),
  }),
  z.strictObject({
    do: z.literal('rotate'),
    step: z.enum(['start', 'status', 'finish', 'abort']),
    force: z.boolean(),
  }),
  z.strictObject({ do: z.literal('status') }),
])

/** A command; the methods of CertificateAuthority and MeshTrust document what it does and throws. */
export type CaCommand = z.output<typeof caCommand>

/** Steps of a rotation. */
export type RotationStep = Extract<CaCommand, { do: 'rotate' }>['step']

/** The result of each command. */
interface Answers {
  readonly token: { readonly token: string; readonly expiresAtMs: number }
  readonly revoke: { readonly serials: readonly string[] }
  readonly rotate: RotationStatus
  readonly status: CaStatus
}

/**
 * Executes a command: by the server if one runs, otherwise in this process.
 * @throws MeshError as CertificateAuthority, and HM_CA_LOCKED, HM_CA_CONTROL_FAILED
 */
export async function runCommand<Name extends CaCommand['do']>(
  directory: string,
  command: Extract<CaCommand, { do: Name }>,
): Promise<Answers[Name]> {
  const deadline = performance.now() + LOCK_PATIENCE_MS
  for (;;) {
    const answer = await askServer(directory, command)
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- both ends are this file of one release
    if (answer !== undefined) return answer as Answers[Name]
    try {
      using authority = new CertificateAuthority({ directory, log: silentLog, clock: systemClock })
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- execute() answers each command in its own way
      return execute(authority, command) as Answers[Name]
    } catch (thrown) {
      if (errorCode(thrown) !== 'HM_CA_LOCKED' || performance.now() > deadline) throw thrown
    }
    await sleep(100)
  }
}

function execute(authority: CertificateAuthority, command: CaCommand): Answers[CaCommand['do']] {
  switch (command.do) {
    case 'token':
      return authority.createToken(command)
    case 'revoke': {
      const { do: _, ...request } = command
      return authority.revoke(request)
    }
    case 'rotate':
      return rotate(authority, command.step, command.force)
    case 'status':
      return authority.status()
    default:
      return command satisfies never
  }
}

function rotate(
  authority: CertificateAuthority,
  step: RotationStep,
  force: boolean,
): RotationStatus {
  switch (step) {
    case 'start':
      return authority.trust.startRotation()
    case 'status':
      return authority.trust.rotationStatus()
    case 'finish':
      return authority.trust.finishRotation(force)
    case 'abort':
      return authority.trust.abortRotation()
    default:
      return step satisfies never
  }
}

function socketOf(directory: string): string {
  return join(directory, 'admin.sock')
}

/** The server's answer; undefined when no server runs. */
async function askServer(directory: string, command: CaCommand): Promise<unknown> {
  let answer: JsonAnswer
  try {
    const signal = AbortSignal.timeout(CALL_TIMEOUT_MS)
    const options = { socketPath: socketOf(directory), path: '/v1/command', agent: false, signal }
    answer = await callJson(http.request, options, { body: command, maxBytes: MAX_BYTES })
  } catch (thrown) {
    const code = errorCode(thrown)
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined
    if (code === 'EACCES') throw thrown
    throw new MeshError('HM_CA_CONTROL_FAILED', `Cannot ask the CA in ${directory}`, {
      cause: thrown,
    })
  }
  if (answer.status === 200) return answer.body
  const { code = 'HM_CA_CONTROL_FAILED', message, hint } = readError(answer.body)
  throw new MeshError(code, message ?? `Cannot ask the CA in ${directory}`, {
    ...(hint !== undefined && { hint }),
  })
}

/**
 * Executes commands for a CA that this process has open.
 * @throws what node:net throws when the socket cannot be created
 */
export async function serveControlSocket(
  authority: CertificateAuthority,
  directory: string,
): Promise<AsyncDisposable> {
  const path = socketOf(directory)
  const server = http.createServer(
    { headersTimeout: 5_000, requestTimeout: 10_000, connectionsCheckingInterval: 1_000 },
    (request, response) => {
      readBody(request, MAX_BYTES)
        .then((body) => execute(authority, caCommand.parse(parseJson(body))))
        .then(
          (answer) => replyJson(response, 200, answer),
          (thrown) => replyJson(response, 400, errorDocument(thrown, describeError(thrown))),
        )
        .catch(() => response.destroy())
    },
  )
  server.maxConnections = 16
  // This process holds the lock of the directory, so an existing socket was left by a dead process.
  rmSync(path, { force: true })
  const listening = once(server, 'listening')
  const umask = process.umask(0o177)
  try {
    server.listen(path)
  } finally {
    process.umask(umask)
  }
  await listening
  return { [Symbol.asyncDispose]: () => closeServer(server) }
}
