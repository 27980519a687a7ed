/**
 * The end of a TLS connection, said or not: close_notify is an end, a bare FIN is a cut. Real sockets, both roles, both
 * versions of TLS, whatever the moment.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect as connectTcp, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { connect, createServer, type SecureVersion, type TLSSocket } from 'node:tls'

import { SocketStream } from '../../src/dataplane/io/socket-stream.ts'
import { watchTlsEnd } from '../../src/dataplane/io/tls-end.ts'
import { within } from '../harness/eventually.ts'
import { Collector, leafOf } from '../integration/tunnel-fixtures.ts'

const { certificatePem: cert, privateKeyPem: key } = leafOf('db')

interface Ends extends AsyncDisposable {
  /** Ours. */
  readonly near: TLSSocket
  /** The peer's, and the TCP connection under it. */
  readonly far: TLSSocket
  readonly farTcp: Socket
}

async function open(role: 'accepts' | 'dials', version: SecureVersion): Promise<Ends> {
  const server = createServer({ cert, key, maxVersion: version, allowHalfOpen: true })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const tcp = connectTcp({ host: '127.0.0.1', port, allowHalfOpen: true })
  const under = once(server, 'connection')
  const accepting = new Promise<TLSSocket>((resolve) =>
    server.once('secureConnection', (socket) => {
      watchTlsEnd(socket)
      resolve(socket)
    }),
  )
  const options = { socket: tcp, rejectUnauthorized: false, allowHalfOpen: true }
  const client = connect(options)
  client.once('secureConnect', () => watchTlsEnd(client))
  const accepted = await accepting
  // So that handshake and tickets are over on both sides.
  accepted.write('.')
  assert.equal(String(await once(client, 'data')), '.')
  client.pause()
  for (const socket of [client, accepted]) socket.on('error', () => undefined)
  const [acceptedTcp] = (await under) as [Socket]
  const ends =
    role === 'accepts'
      ? { near: accepted, far: client, farTcp: tcp }
      : { near: client, far: accepted, farTcp: acceptedTcp }
  return {
    ...ends,
    [Symbol.asyncDispose]: async () => {
      for (const socket of [client, accepted, tcp, acceptedTcp]) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

/** What the peer does, in one segment where it can. */
const acts: Record<string, (ends: Ends) => void> = {
  'at rest': () => undefined,
  'after some bytes': ({ far }) => void far.write('some bytes'),
  'after many bytes': ({ far }) => void far.write(Buffer.alloc(300_000)),
  'in the middle of a record': ({ farTcp }) =>
    void farTcp.write(Buffer.from([23, 3, 3, 0, 100, 1, 2, 3])),
}

for (const role of ['accepts', 'dials'] as const)
  for (const version of ['TLSv1.2', 'TLSv1.3'] as const)
    describe(`a host that ${role}, ${version}`, () => {
      for (const [when, act] of Object.entries(acts))
        for (const moment of ['reading', 'not yet reading', 'paused'] as const) {
          test(`a FIN ${when} is a cut, ${moment}`, async () => {
            await using ends = await open(role, version)
            const told = await listen(ends, moment, () => {
              act(ends)
              const fin = (): void => {
                if (ends.far.writableLength > 0) setTimeout(fin, 5)
                else ends.farTcp.end()
              }
              fin()
            })
            await within(
              5_000,
              'the cut',
              told.until(() => told.reset !== undefined || told.ended),
            )
            assert.equal(told.ended, false)
            assert.equal(Reflect.get(told.reset ?? {}, 'code'), 'HM_TLS_CUT_OFF')
          })

          if (when === 'in the middle of a record') continue
          test(`close_notify ${when} is an end, ${moment}`, async () => {
            await using ends = await open(role, version)
            const told = await listen(ends, moment, () => {
              ends.farTcp.cork()
              act(ends)
              ends.far.end()
              ends.farTcp.uncork()
            })
            await within(
              5_000,
              'the end',
              told.until(() => told.reset !== undefined || told.ended),
            )
            assert.equal(told.reset, undefined)
          })
        }
    })

/** Has the peer act while our side is in some state, and lets our side read to the end after that. */
async function listen(
  { near }: Ends,
  moment: 'reading' | 'not yet reading' | 'paused',
  act: () => void,
): Promise<Collector> {
  const stream = new SocketStream(near, 'private')
  const told = new Collector(stream)
  if (moment !== 'not yet reading') stream.resume()
  if (moment === 'paused') stream.pause()
  act()
  if (moment !== 'reading') await new Promise((resolve) => setTimeout(resolve, 100))
  stream.resume()
  return told
}

test('a receiver that is full when the end comes along with the last bytes hears of an end', async () => {
  await using ends = await open('accepts', 'TLSv1.3')
  const stream = new SocketStream(ends.near, 'private')
  const told = new Collector(stream)
  const onBytes = told.onBytes.bind(told)
  told.onBytes = (bytes) => {
    stream.pause()
    setTimeout(() => stream.resume(), 20)
    return onBytes(bytes)
  }
  stream.resume()
  ends.far.write('the last bytes')
  ends.far.end()
  await within(
    5_000,
    'the end',
    told.until(() => told.reset !== undefined || told.ended),
  )
  assert.equal(told.reset, undefined)
  assert.equal(told.bytes.toString(), 'the last bytes')
})
