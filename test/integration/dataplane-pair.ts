/**
 * Hosts of dataplane-fixtures.ts: web on one, which may reach db on the other, or both on one.
 */
import { randomBytes } from 'node:crypto'
import type { Worker } from 'node:worker_threads'
import { within } from '../harness/eventually.ts'
import {
  type Application,
  dial,
  ending,
  endpoint,
  freePort,
  type HostOptions,
  localService,
  snapshotOf,
  startHost,
  type TestHost,
} from './dataplane-fixtures.ts'

/** A host with service web that reaches db through an explicit upstream. */
export async function startWeb(
  options: Omit<HostOptions, 'services'> = {},
): Promise<{ host: TestHost; port: number }> {
  const port = await freePort()
  const host = await startHost({
    ...options,
    services: [
      localService('web', {
        upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
      }),
    ],
  })
  return { host, port }
}

/** A host with service db in front of `application`. */
export function startDb(
  application: Pick<Application, 'port'>,
  options: Omit<HostOptions, 'services'> = {},
): Promise<TestHost> {
  return startHost({
    ...options,
    services: [localService('db', { target: { ip: '127.0.0.1', port: application.port } })],
  })
}

/** web on one host, db on another, web may reach db. */
export async function startPair(
  undo: AsyncDisposableStack,
  application: Application,
  options: { web?: Omit<HostOptions, 'services'>; db?: Omit<HostOptions, 'services'> } = {},
): Promise<{ web: TestHost; db: TestHost; port: number }> {
  undo.use(application)
  const db = undo.use(await startDb(application, options.db))
  const { host: web, port } = await startWeb(options.web)
  undo.use(web)
  const snapshot = snapshotOf('db', [endpoint('db', db.tunnelPort)])
  await web.publish(snapshot)
  await db.publish(snapshot)
  return { web, db, port }
}

/** web and db on one host; what web may do is the `action`. */
export async function startTogether(
  undo: AsyncDisposableStack,
  application: Application,
  action: 'allow' | 'deny' = 'allow',
): Promise<{ host: TestHost; port: number }> {
  undo.use(application)
  const port = await freePort()
  const host = undo.use(
    await startHost({
      services: [
        localService('web', {
          upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
        }),
        localService('db', { target: { ip: '127.0.0.1', port: application.port } }),
      ],
    }),
  )
  await host.publish(
    snapshotOf('db', [endpoint('db', host.tunnelPort, { local: true })], [['web', action]]),
  )
  return { host, port }
}

/** Sends `bytes`, ends, and returns all that comes back. */
export async function roundTrip(
  port: number,
  bytes: Buffer,
): Promise<{ bytes: Buffer; how: string }> {
  const socket = await dial(port)
  const answer = ending(socket)
  socket.end(bytes)
  return within(15_000, 'the answer', answer)
}

/** More than all buffers on the way hold. */
export const large: Buffer = randomBytes(6_000_000)

/** The living threads of a host's workers. */
export function threadsOf(host: TestHost): Worker[] {
  return host.pool.workers.flatMap(({ thread }) => (thread === undefined ? [] : [thread]))
}
