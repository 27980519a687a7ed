/**
 * Other programs flush, delete and exchange what capture has in the kernel, while connections are open and new ones
 * begin: nothing of them is on the wire in plaintext, all is as planned again soon, and no connection that only reads
 * waits for ever. The same claims for each backend.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { BackendKind } from '../../src/model/capture-backend.ts'

import { eventually, within } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { manual, type RunningService } from '../harness/service.ts'
import { keepConnecting } from '../harness/steady-calls.ts'
import { canary } from '../harness/wire-capture.ts'

const DB_PORT = 5_432
const FEED_PORT = 7_000
/** 1.5 s were seen beside two other files; the rest is for busier machines. */
const HEALED_MS = 6_000

/** What is done to a host whose backend this is. */
export interface Flushes {
  readonly backend: BackendKind
  /** What others do, one command a line. */
  readonly events: Readonly<Record<string, readonly string[]>>
  /** Commands that print what capture has in the kernel, without what packets change. */
  readonly listings: readonly string[]
}

/** Writes the canary again and again until the connection ends; prints how it ended. */
const WRITER = `
import socket, sys, time
ip, port, text = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
with socket.create_connection((ip, port), 10) as s:
    print('open', flush=True)
    try:
        while True:
            s.sendall(text + b'-1\\n')
            s.recv(65536)
            time.sleep(0.01)
    except OSError as error:
        print('ended', type(error).__name__, flush=True)
`

/** Opens a connection, says so, and leaves it to whoever ends it. */
const IDLER = `
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as s:
    s.sendall(b'here\\n')
    s.recv(65536)
    print('open', flush=True)
    time.sleep(60)
`

/** Declares a test for each event. */
export function testFlushes({ backend, events, listings }: Flushes): void {
  let mesh: Mesh
  let web: RunningService
  let feed: RunningService

  before(async () => {
    mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    a.configure({ capture: { mode: 'on', backend } })
    web = await a.service('web').start()
    await b.service('db', { listens: DB_PORT }).start()
    feed = await b.service('feed', { listens: FEED_PORT }).start(manual)
    await mesh.allow('web', '*')
    await mesh.up()
    await eventually(() => web.call('db'))
  })

  after(() => mesh[Symbol.asyncDispose]())

  /** What capture has in the kernel. */
  async function inKernel(): Promise<string> {
    const { namespace } = mesh.host('a')
    const texts = await Promise.all(
      listings.map(async (command) => {
        const text = await namespace.run(...command.split(' '))
        // Members stand in the order of a seed, which a set that is made anew has for itself.
        return command.startsWith('ipset ') ? text.split('\n').toSorted().join('\n') : text
      }),
    )
    return texts.join('\n').replaceAll(/^#.*\n|\[\d+:\d+\]| initval 0x[0-9a-f]+/gm, '')
  }

  /**
   * Whether the caller of an address has the port that the daemon knows it by. REDIRECT gives another one to who uses the port of
   * a connection that tracking remembers: when tracking forgets that, nobody can tell whose it was (docs/capture.md).
   */
  async function isFoundByItsPort(target: string): Promise<boolean> {
    const { namespace } = mesh.host('a')
    const open = ['ss', '-Htn', 'state', 'established']
    const callers = await namespace.run(...open, 'dst', `${target}:${FEED_PORT}`)
    const port = /:(\d+) +\S+\s*$/m.exec(callers)?.[1]
    assert.ok(port !== undefined, callers)
    return (await namespace.run(...open, 'sport', '= :15100', 'and', 'dport', `= :${port}`)) !== ''
  }

  for (const [what, commands] of Object.entries(events))
    test(what, async (t) => {
      const [a, b] = [mesh.host('a'), mesh.host('b')]
      const { ip, port } = await mesh.virtualAddress('db', a)
      const text = canary()
      const planned = await inKernel()
      await using onA = await watchForPlaintext(a.namespace, text)
      await using calls = await keepConnecting(web.service, {
        targets: [`${ip}:${port}`, `${b.namespace.ip}:${DB_PORT}`],
        rate: 80,
        canary: text,
      })
      const writers = await Promise.all(
        [ip, b.namespace.ip].map(async (target) => {
          const program = ['/usr/bin/python3', '-c', WRITER, target, String(DB_PORT), text]
          const output: string[] = []
          const writer = await web.service.spawn(program, {
            onOutput: (chunk) => output.push(chunk.toString('utf8')),
          })
          await eventually(() => assert.match(output.join(''), /open/), { withinMs: 30_000 })
          return writer
        }),
      )
      const readers = await Promise.all(
        (
          [
            ['virtual', (await mesh.virtualAddress('feed', a)).ip],
            ['instance', b.namespace.ip],
          ] as const
        ).map(async ([kind, target]) => {
          for (;;) {
            const near = await web.workload.dial(target, FEED_PORT)
            await near.write(`${kind}\n`)
            const far = await feed.accept()
            assert.equal(await far.readLine(), kind)
            if (backend === 'nftables' || (await isFoundByItsPort(target)))
              return { kind, near, far }
            await near.reset()
            await far.reset()
          }
        }),
      )
      await calls.more(20)

      const from = performance.now()
      for (const command of commands) {
        const [first = '', ...rest] = command.split(' ')
        await a.namespace.run(first, ...rest)
      }
      if (planned !== (await inKernel().catch(() => '')))
        await eventually(async () => assert.equal(await inKernel(), planned), {
          withinMs: HEALED_MS,
          everyMs: 20,
        })
      t.diagnostic(`as planned again after ${Math.round(performance.now() - from)} ms`)

      for (const { kind, near, far } of readers) {
        await far.write('after\n').catch(() => undefined)
        const outcome = await within(
          15_000,
          `An end of the ${kind} connection that only reads, or its bytes`,
          near.readLine().catch((error: unknown) => String(error)),
        )
        t.diagnostic(`reader, ${kind}: ${outcome}`)
        await near.reset().catch(() => undefined)
        await far.reset().catch(() => undefined)
      }
      await eventually(() => web.call('db'))
      await eventually(() => web.callAddress(b.namespace.ip, DB_PORT))
      await calls.more(80)
      for (const writer of writers) if (!writer.hasExited) await writer.kill()
      const { outcomes } = await calls.stop()
      t.diagnostic(JSON.stringify(outcomes))
      await onA.assertNone()
      // What tracking has forgotten ends by keepalive, which takes a minute.
      if (backend === 'nftables') for (const host of [a, b]) await host.daemon.hasNoConnections()
    })

  if (backend === 'nftables')
    test('callers that end while nothing is diverted leave no connection behind', async () => {
      const [a, b] = [mesh.host('a'), mesh.host('b')]
      const { ip } = await mesh.virtualAddress('db', a)
      const idlers = await Promise.all(
        [ip, b.namespace.ip].map(async (target) => {
          const output: string[] = []
          const idler = await web.service.spawn(
            ['/usr/bin/python3', '-c', IDLER, target, String(DB_PORT)],
            { onOutput: (chunk) => output.push(chunk.toString('utf8')) },
          )
          await eventually(() => assert.match(output.join(''), /open/), { withinMs: 30_000 })
          return idler
        }),
      )
      const pids = idlers.map(({ pid }) => pid).join(' ')
      await a.namespace.run('sh', '-c', `nft flush ruleset; kill -9 ${pids}`)
      for (const host of [a, b]) await host.daemon.hasNoConnections()
    })
}
