/**
 * What an operator does to a CA: tokens, revocations, rotation, status. A running server does it on behalf of the
 * command, asked over a unix socket in its directory; without one the command does it itself, under the lock.
 *
 * The socket is the server's own (0600): who may use it could read the keys beside it anyhow.
 */
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import type { IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { systemClock } from '../lib/clock.ts'
import { describeError, errorCode, isErrorCode, MeshError } from '../lib/errors.ts'
import { silentLog } from '../lib/log.ts'
import { http } from '../lib/node-http.ts'
import {
  CaOffice,
  type CaStatus,
  type RevokeRequest,
  type RotationStatus,
  type TokenRequest,
} from './certificate-authority.ts'

export type { CaStatus, RevokeRequest, RotationStatus, TokenRequest }

/** Steps of a rotation. */
export type RotationStep = 'start' | 'status' | 'finish' | 'abort'

const MAX_BYTES = 64 * 1_024 * 1_024
const CALL_TIMEOUT_MS = 30_000

/** A directory that is just being used by another command is tried again for so long. */
const LOCK_PATIENCE_MS = 5_000

const order = z.discriminatedUnion('do', [
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

type Order = z.output<typeof order>

/** Makes a join token. @throws MeshError as CaOffice.createToken, and HM_CA_LOCKED, HM_CA_CONTROL_FAILED */
export function makeToken(
  directory: string,
  asked: TokenRequest,
): Promise<{ readonly token: string; readonly expiresAtMs: number }> {
  const { host, datacenter, services, ttlMs, address } = asked
  return carryOut(directory, {
    do: 'token',
    host,
    datacenter,
    services: [...services],
    ttlMs,
    ...(address !== undefined && { address }),
  })
}

/** Revokes certificates. @throws MeshError as CaOffice.revoke, and as {@link makeToken} */
export function revokeCertificates(
  directory: string,
  asked: RevokeRequest,
): Promise<{ readonly serials: readonly string[] }> {
  const { host, service, serial } = asked
  return carryOut(directory, {
    do: 'revoke',
    ...(host !== undefined && { host }),
    ...(service !== undefined && { service }),
    ...(serial !== undefined && { serial }),
  })
}

/** Takes a rotation one step on. @throws MeshError as CaOffice says, and as {@link makeToken} */
export function rotateRoot(
  directory: string,
  step: RotationStep,
  force: boolean,
): Promise<RotationStatus> {
  return carryOut(directory, { do: 'rotate', step, force })
}

/** How the CA is. @throws MeshError as {@link makeToken} */
export function readCaStatus(directory: string): Promise<CaStatus> {
  return carryOut(directory, { do: 'status' })
}

function perform(office: CaOffice, asked: Order): object {
  switch (asked.do) {
    case 'token':
      return office.createToken(asked)
    case 'revoke':
      return office.revoke(asked)
    case 'rotate':
      return rotate(office, asked.step, asked.force)
    case 'status':
      return office.status()
    default:
      return asked satisfies never
  }
}

function rotate(office: CaOffice, step: RotationStep, force: boolean): RotationStatus {
  switch (step) {
    case 'start':
      return office.startRotation()
    case 'status':
      return office.rotationStatus()
    case 'finish':
      return office.finishRotation(force)
    case 'abort':
      return office.abortRotation()
    default:
      return step satisfies never
  }
}

function socketPath(directory: string): string {
  return join(directory, 'admin.sock')
}

/** By the server when there is one, by ourselves else. `Result` is what {@link perform} makes of that order. */
async function carryOut<Result>(directory: string, asked: Order): Promise<Result> {
  const deadline = performance.now() + LOCK_PATIENCE_MS
  for (;;) {
    const answer = await askServer(directory, asked)
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- both ends are this file of one release
    if (answer !== undefined) return answer as Result
    try {
      using office = new CaOffice({ directory, log: silentLog, clock: systemClock })
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- perform() answers each order in its own way
      return perform(office, asked) as Result
    } catch (thrown) {
      if (errorCode(thrown) !== 'HM_CA_LOCKED' || performance.now() > deadline) throw thrown
    }
    await sleep(100)
  }
}

/** The server's answer; undefined when none runs. */
async function askServer(directory: string, asked: Order): Promise<object | undefined> {
  const payload = Buffer.from(JSON.stringify(asked))
  let text: string
  try {
    const call = http.request({
      socketPath: socketPath(directory),
      path: '/v1/order',
      method: 'POST',
      agent: false,
      signal: AbortSignal.timeout(CALL_TIMEOUT_MS),
      headers: { 'content-type': 'application/json', 'content-length': payload.length },
    })
    const answered = new Promise<IncomingMessage>((resolve, reject) => {
      call.once('response', resolve)
      call.once('error', reject)
    })
    call.end(payload)
    const response = await answered
    text = await readAll(response)
  } catch (thrown) {
    const code = errorCode(thrown)
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined
    if (code === 'EACCES') throw thrown
    throw new MeshError('HM_CA_CONTROL_FAILED', `Cannot ask the CA in ${directory}`, {
      cause: thrown,
    })
  }
  const answer = orderAnswer.parse(JSON.parse(text))
  if ('result' in answer) return answer.result
  const { code, message, hint } = answer.error
  throw new MeshError(
    isErrorCode(code) ? code : 'HM_CA_CONTROL_FAILED',
    message,
    hint === undefined ? {} : { hint },
  )
}

const orderAnswer = z.union([
  z.strictObject({ result: z.looseObject({}) }),
  z.strictObject({
    error: z.strictObject({ code: z.string(), message: z.string(), hint: z.string().optional() }),
  }),
])

/**
 * Takes orders for an office that this process holds.
 * @throws what node:net throws when the socket cannot be made
 */
export async function takeOrders(office: CaOffice, directory: string): Promise<AsyncDisposable> {
  const path = socketPath(directory)
  const server = http.createServer(
    { headersTimeout: 5_000, requestTimeout: 10_000, connectionsCheckingInterval: 1_000 },
    (incoming, response) => {
      answerOrder(office, incoming).then(
        (body) => response.end(JSON.stringify(body)),
        () => response.destroy(),
      )
    },
  )
  server.maxConnections = 16
  // We hold the lock of the directory: a socket that is there is that of somebody dead.
  rmSync(path, { force: true })
  const listening = once(server, 'listening')
  const umask = process.umask(0o177)
  try {
    server.listen(path)
  } finally {
    process.umask(umask)
  }
  await listening
  return {
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

async function answerOrder(
  office: CaOffice,
  incoming: IncomingMessage,
): Promise<z.input<typeof orderAnswer>> {
  try {
    return { result: { ...perform(office, order.parse(JSON.parse(await readAll(incoming)))) } }
  } catch (thrown) {
    const hint = thrown instanceof MeshError ? thrown.hint : undefined
    return {
      error: {
        code: errorCode(thrown),
        message: describeError(thrown),
        ...(hint !== undefined && { hint }),
      },
    }
  }
}

async function readAll(message: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of message) {
    length += chunk.length
    if (length > MAX_BYTES) throw new Error('The message is too long')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}
