/**
 * Claims about the resolver's sockets (src/controlplane/dns/server.ts), asked by dig and by hostile callers.
 */
import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { after, before, describe, test } from 'node:test'
import dnsPacket, { type Packet } from 'dns-packet'
import { type DnsServer, startDnsServer } from '../../src/controlplane/dns/server.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'
import { meshService } from '../harness/builders.ts'
import { eventually } from '../harness/eventually.ts'
import { mustRun } from '../harness/owned-process.ts'

const db = meshService('db', { virtualIps: ['240.0.0.7', 'fdc6::7'] })

let server: DnsServer
/** Answers to lookups of `slow`, which wait until the test lets them. */
let release: (() => void)[] = []

function start(port = 0): Promise<DnsServer> {
  return startDnsServer({
    address: { ip: '127.0.0.1', port },
    datacenter: 'dc1',
    ttlS: 30,
    tcpIdleMs: 300,
    log: silentLog,
    lookup: async (name, _needs, { wait }) => {
      if (name === 'slow' && !wait) return { kind: 'unavailable' }
      if (name === 'slow') await new Promise<void>((resolve) => release.push(resolve))
      if (name === 'late') return { kind: 'unavailable' }
      return name === 'db' || name === 'slow'
        ? { kind: 'service', service: db }
        : { kind: 'unknown', isParent: false }
    },
  })
}

before(async () => {
  server = await start()
})
after(() => server[Symbol.asyncDispose]())

function dig(...args: string[]): Promise<string> {
  return mustRun(['dig', '@127.0.0.1', '-p', String(server.address.port), '+tries=1', ...args])
}

function question(name: string, id = 1): Buffer {
  return dnsPacket.encode({ type: 'query', id, questions: [{ type: 'A', name }] })
}

function framed(message: Buffer): Buffer {
  const length = Buffer.alloc(2)
  length.writeUInt16BE(message.length)
  return Buffer.concat([length, message])
}

async function open(): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: server.address.port, allowHalfOpen: true })
  await once(socket, 'connect')
  return socket
}

/** Reads `count` answers from a TCP connection. */
async function readAnswers(socket: Socket, count: number): Promise<Packet[]> {
  let unread: Buffer = Buffer.alloc(0)
  const answers: Packet[] = []
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    unread = Buffer.concat([unread, chunk as Buffer])
    while (unread.length >= 2 && unread.length >= 2 + unread.readUInt16BE(0)) {
      const end = 2 + unread.readUInt16BE(0)
      answers.push(dnsPacket.decode(unread.subarray(2, end)))
      unread = unread.subarray(end)
    }
    if (answers.length >= count) break
  }
  return answers
}

describe('dig gets', () => {
  for (const transport of ['+notcp', '+tcp'])
    test(`addresses, ports and negative answers with ${transport}`, async () => {
      assert.equal(await dig(transport, '+short', 'db.mesh', 'A'), '240.0.0.7\n')
      assert.equal(await dig(transport, '+short', 'DB.virtual.consul', 'AAAA'), 'fdc6::7\n')
      const missing = await dig(transport, 'nothing.mesh', 'A')
      assert.match(missing, /status: NXDOMAIN/)
      assert.match(missing, /\nmesh\.\s+5\s+IN\s+SOA/)
      assert.match(await dig(transport, 'example.com', 'A'), /status: REFUSED/)
      assert.match(await dig(transport, 'late.mesh', 'A'), /status: SERVFAIL/)
    })

  test('an answer that is authoritative, offers no recursion, and repeats the case of the question', async () => {
    const answer = await dig('dB.MeSh', 'A')
    assert.match(answer, /flags: qr aa rd; QUERY: 1, ANSWER: 1/)
    assert.match(answer, /recursion requested but not available/)
    assert.match(answer, /^dB\.MeSh\.\s+30\s+IN\s+A\s+240\.0\.0\.7$/m)
    assert.doesNotMatch(answer, /WARNING: .*(mismatch|malformed|extra)/i)
  })

  test('an answer to any EDNS, cookies and DNSSEC wishes included', async () => {
    const answer = await dig('+dnssec', '+cookie', '+nsid', 'db.mesh', 'A')
    assert.match(answer, /EDNS: version: 0, flags: do; udp: 1232/)
    assert.match(answer, /240\.0\.0\.7/)
    assert.match(await dig('+edns=1', '+noednsnegotiation', 'db.mesh'), /status: BADVERS/)
  })

  test('NOTIMP for another operation, REFUSED for another class and for zone transfers', async () => {
    assert.match(await dig('+opcode=notify', 'db.mesh'), /status: NOTIMP/)
    assert.match(await dig('-c', 'CH', 'version.bind', 'TXT'), /status: REFUSED/)
    assert.match(await dig('mesh', 'AXFR'), /Transfer failed|REFUSED/)
  })
})

test('questions of one TCP connection are answered as they are ready, in any pieces', async () => {
  const socket = await open()
  const bytes = Buffer.concat([
    framed(question('slow.mesh', 1)),
    framed(question('db.mesh', 2)),
    framed(question('nothing.mesh', 3)),
  ])
  for (let at = 0; at < bytes.length; at += 7) socket.write(bytes.subarray(at, at + 7))
  const first = await readAnswers(socket, 2)
  assert.deepEqual(new Set(first.map(({ id }) => id)), new Set([2, 3]))
  for (const answer of release.splice(0)) answer()
  const [last] = await readAnswers(socket, 1)
  assert.equal(last?.id, 1)
  socket.destroy()
})

test('who has finished asking over TCP still gets the answers, then the end', async () => {
  const socket = await open()
  socket.end(framed(question('db.mesh', 7)))
  const ended = once(socket, 'end')
  assert.equal((await readAnswers(socket, 1))[0]?.id, 7)
  socket.resume()
  await ended
})

test('a TCP connection that says nothing, or half a question, is closed after the idle time', async () => {
  for (const beginning of [Buffer.alloc(0), framed(question('db.mesh')).subarray(0, 9)]) {
    const socket = await open()
    const closed = once(socket, 'close')
    socket.on('error', () => undefined)
    socket.on('end', () => socket.end())
    socket.resume()
    socket.write(beginning)
    await closed
  }
})

test('a TCP message that is too long closes the connection, and the next one is served', async () => {
  const socket = await open()
  const closed = once(socket, 'close')
  socket.on('error', () => undefined)
  socket.on('end', () => socket.end())
  socket.resume()
  socket.write(Buffer.from([0xff, 0xff, 1, 2, 3]))
  await closed
  assert.equal(await dig('+tcp', '+short', 'db.mesh'), '240.0.0.7\n')
})

test('however many TCP connections are open, questions over UDP and TCP are answered', async () => {
  const sockets = Array.from({ length: 100 }, () =>
    connect({ host: '127.0.0.1', port: server.address.port }),
  )
  for (const socket of sockets) socket.on('error', () => undefined).resume()
  await Promise.all(sockets.map((socket) => once(socket, 'connect')))
  assert.equal(await dig('+notcp', '+short', 'db.mesh'), '240.0.0.7\n')
  for (let i = 0; i < 3; i += 1) assert.equal(await dig('+tcp', '+short', 'db.mesh'), '240.0.0.7\n')
  for (const socket of sockets) socket.destroy()
})

test('an address has 500 questions that wait; one more fails at once, what is known is answered, and others wait for theirs', async () => {
  const rcodes = new Map<number, number>()
  const socketAt = async (ip: string): Promise<ReturnType<typeof createSocket>> => {
    const socket = createSocket('udp4')
    socket.on('message', (message) => rcodes.set(message.readUInt16BE(0), (message[3] ?? 0) & 15))
    await new Promise<void>((resolve) => socket.bind(0, ip, resolve))
    return socket
  }
  const busy = await socketAt('127.0.0.1')
  const other = await socketAt('127.0.0.2')
  const ask = (name: string, id: number, from = busy): void =>
    from.send(question(name, id), server.address.port, '127.0.0.1')
  let asked = 0
  await eventually(
    () => {
      // In small portions: a datagram that finds no room in the kernel's buffer is lost.
      for (let i = 0; i < 50 && asked < 600; i += 1) ask('slow.mesh', (asked += 1))
      assert.ok(release.length >= 500, `${release.length} wait`)
    },
    { everyMs: 10, withinMs: 20_000 },
  )
  ask('slow.mesh', 60_000)
  ask('db.mesh', 60_001)
  ask('example.com', 60_002)
  ask('slow.mesh', 60_003, other)
  await eventually(() => {
    assert.equal(rcodes.get(60_000), 2)
    assert.equal(rcodes.get(60_001), 0, 'what is known is answered')
    assert.equal(rcodes.get(60_002), 5, 'what needs no look is answered')
    assert.equal(release.length, 501, 'the other one waits')
  })
  for (const answer of release.splice(0)) answer()
  await eventually(() => assert.equal(rcodes.get(60_003), 0))
  release = []
  busy.close()
  other.close()
})

test('noise gets no answer and is counted', async () => {
  const earlier = server.counts()
  const socket = createSocket('udp4')
  const answers: Buffer[] = []
  socket.on('message', (message) => answers.push(message))
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve))
  const send = (bytes: Buffer): void => socket.send(bytes, server.address.port, '127.0.0.1')
  send(Buffer.from('GET / HT'))
  send(dnsPacket.encode({ type: 'response', id: 9, questions: [{ type: 'A', name: 'db.mesh' }] }))
  send(question('db.mesh', 11))
  await eventually(() => {
    assert.equal(server.counts().dropped, earlier.dropped + 2)
    assert.equal(answers.length, 1)
  })
  assert.equal(server.counts().answered, earlier.answered + 1)
  socket.close()
})

test('a port that somebody has is an error that says how to find them', async () => {
  await assert.rejects(
    start(server.address.port),
    (error) =>
      error instanceof MeshError &&
      error.code === 'HM_DNS_LISTEN_FAILED' &&
      /ss -lntup/.test(error.hint ?? ''),
  )
  assert.equal(await dig('+short', 'db.mesh'), '240.0.0.7\n', 'and the first one goes on')
})
