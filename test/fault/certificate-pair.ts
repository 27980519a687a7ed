/**
 * web on one host and db on another, fed with certificates by hand: what a CA does in days happens when a
 * test says so. Real workers and TLS over loopback; no control plane.
 */
import type { Socket } from 'node:net'
import type { Leaf, TrustBundle } from '../../src/model/certificate.ts'
import { within } from '../harness/eventually.ts'
import {
  type Application,
  dial,
  ending,
  endpoint,
  freePort,
  localService,
  read,
  snapshotOf,
  startApplication,
  startHost,
  type TestHost,
} from '../integration/dataplane-fixtures.ts'
import { authority, leafOf } from '../integration/tunnel-fixtures.ts'

/** A running pair and the leaves it began with. */
export interface CertificatePair extends AsyncDisposable {
  readonly web: TestHost
  readonly db: TestHost
  readonly webLeaf: Leaf
  readonly dbLeaf: Leaf
  /** The instance of db hands its connections to the test. */
  readonly application: Application
  /** Opens a connection from web to db; resolves with both ends when the first byte has arrived. */
  connect(): Promise<readonly [caller: Socket, called: Socket]>
  /** Opens a connection to web's upstream port, whoever serves it. */
  dialWeb(): Promise<Socket>
  /** The snapshot with db at another tunnel port. */
  snapshotWith(tunnelPort: number): ReturnType<typeof snapshotOf>
  /** Connects and says something; resolves with how the connection ended: `end` when all went well. */
  call(): Promise<string>
}

/** Starts the pair. Times are those of the leaves, an hour unless given. */
export async function startCertificatePair(
  leaves: { readonly web?: Leaf; readonly db?: Leaf } = {},
): Promise<CertificatePair> {
  await using undo = new AsyncDisposableStack()
  const application = undo.use(await startApplication())
  const port = await freePort()
  const db = undo.use(
    await startHost({
      services: [localService('db', { target: { ip: '127.0.0.1', port: application.port } })],
    }),
  )
  const web = undo.use(
    await startHost({
      services: [
        localService('web', {
          upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port } }],
        }),
      ],
    }),
  )
  const { web: webLeaf = leafOf('web'), db: dbLeaf = leafOf('db') } = leaves
  web.pool.setLeaf(webLeaf)
  db.pool.setLeaf(dbLeaf)
  const snapshot = snapshotOf('db', [endpoint('db', db.tunnelPort)])
  await web.publish(snapshot)
  await db.publish(snapshot)
  const connect = async (): Promise<readonly [Socket, Socket]> => {
    const caller = await dial(port)
    caller.write('>')
    const called = await within(10_000, 'the connection at the application', application.next())
    await within(10_000, 'its first byte', read(called, 1))
    return [caller, called]
  }
  const call = async (): Promise<string> => {
    const caller = await dial(port)
    const ended = ending(caller)
    caller.end('>')
    const accepted = application.next().then((called) => {
      called.on('error', () => undefined)
      called.resume()
      called.end()
    })
    accepted.catch(() => undefined)
    const { how } = await within(10_000, 'the end of a call', ended)
    return how
  }
  const held = undo.move()
  return {
    web,
    db,
    webLeaf,
    dbLeaf,
    application,
    connect,
    dialWeb: () => dial(port),
    snapshotWith: (tunnelPort) => snapshotOf('db', [endpoint('db', tunnelPort)]),
    call,
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  }
}

/** The roots of the tests' CA, with these serial numbers revoked. */
export function revoking(...serials: readonly string[]): TrustBundle {
  return { ...authority.bundle, revokedSerials: serials }
}

/** The code of each socket's ending: all of them within `limitMs`. */
export async function endings(sockets: readonly Socket[], limitMs: number): Promise<string[]> {
  const all = await within(
    limitMs,
    `the end of ${sockets.length} connections`,
    Promise.all(sockets.map((socket) => ending(socket))),
  )
  return all.map(({ how }) => how)
}
