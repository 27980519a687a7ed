/**
 * Claims about a dial that several callers wait for: each waits for as long as it may, whoever came first. A peer whose
 * handshake does not come until the test says so, and a clock that the test moves.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import type { TLSSocket } from 'node:tls'
import { dialPeer } from '../../src/dataplane/tunnel/dial.ts'
import { type PoolRequest, type Reached, TunnelPool } from '../../src/dataplane/tunnel/pool.ts'
import { errorCode, MeshError } from '../../src/lib/errors.ts'
import { eventually, within } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'
import { looseLane } from '../unit/account-fixtures.ts'
import { credentialsOf, DATACENTER, openTunnelPort } from './tunnel-fixtures.ts'

const TIMEOUT_MS = 5_000

/** What has become of a caller. */
interface Caller {
  readonly reached: Promise<Reached>
  fate: string
}

async function startScene(undo: AsyncDisposableStack): Promise<{
  readonly clock: TestClock
  readonly dials: number[]
  readonly call: (again?: boolean) => Caller
  readonly pass: (ms: number) => Promise<void>
  readonly thaw: () => void
  readonly refuse: () => void
  /** Peers are sidecars from now on; these are the connections to them. */
  readonly asSidecar: () => readonly TLSSocket[]
}> {
  const clock = new TestClock()
  const startMs = clock.monotonicMs()
  const port = undo.use(await openTunnelPort(['db']))
  const credential = credentialsOf(['web']).of('web')
  assert.ok(credential !== undefined)
  const dials: number[] = []
  const sockets: TLSSocket[] = []
  let isSidecar = false
  const answer = Promise.withResolvers<'thawed'>()
  const pool = new TunnelPool({
    maxStreams: 100,
    keepaliveMs: 10_000,
    idleMs: 60_000,
    lane: () => looseLane(),
    rejectionReason: () => undefined,
    onRoundTrip: () => undefined,
    onStreamReset: () => undefined,
    onStreamShed: () => undefined,
    onDialed: () => undefined,
    onClosed: () => undefined,
    clock,
    dialPeer: async (request) => {
      dials.push(clock.monotonicMs() - startMs)
      const over = new AbortController()
      const late = clock.sleep(request.timeoutMs, over.signal).then(() => 'late' as const)
      const first = await Promise.race([answer.promise, late])
      over.abort()
      if (first === 'late') throw new MeshError('HM_DIAL_TIMEOUT', 'No handshake')
      const dialed = await dialPeer({ ...request, timeoutMs: 20_000 })
      sockets.push(dialed.socket)
      return isSidecar ? { ...dialed, isTunnel: false } : dialed
    },
  })
  undo.defer(() => {
    for (const { session } of pool.list()) session.drain()
  })
  const request: PoolRequest = {
    source: 'web',
    destination: 'db',
    datacenter: DATACENTER,
    address: { ip: '127.0.0.1', port: port.port },
    credential,
    timeoutMs: TIMEOUT_MS,
  }
  return {
    clock,
    dials,
    call: (again = true) => {
      const reached = pool.reach({ ...request, again: () => (again ? credential : undefined) })
      const caller: Caller = { reached, fate: 'waits' }
      reached.then(
        ({ kind }) => {
          caller.fate = kind
        },
        (error: unknown) => {
          caller.fate = errorCode(error)
        },
      )
      return caller
    },
    async pass(ms) {
      clock.pass(ms)
      for (let i = 0; i < 5; i += 1) await turn()
    },
    asSidecar: () => {
      isSidecar = true
      return sockets
    },
    thaw: () => answer.resolve('thawed'),
    refuse: () => answer.reject(new MeshError('HM_DIAL_FAILED', 'Refused')),
  }
}

const fates = (callers: readonly Caller[]): readonly string[] => callers.map(({ fate }) => fate)

test('who came later dials again, all of them once, and is served', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const callers = [scene.call()]
  await scene.pass(2_000)
  callers.push(scene.call())
  await scene.pass(2_000)
  callers.push(scene.call())
  await scene.pass(1_000)
  assert.deepEqual(fates(callers), ['HM_DIAL_TIMEOUT', 'waits', 'waits'])
  assert.deepEqual(scene.dials, [0, 5_000])
  await scene.pass(1_000)
  scene.thaw()
  const reached = await within(
    10_000,
    'the session',
    Promise.all(callers.slice(1).map((caller) => caller.reached)),
  )
  const sessions = reached.map((each) => (each.kind === 'session' ? each.session : undefined))
  assert.ok(sessions[0] !== undefined)
  assert.equal(sessions[0], sessions[1])
  assert.deepEqual(scene.dials, [0, 5_000])
})

test('each gives up when its own time is over, and one that has hardly any left does not dial', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const callers = [scene.call()]
  await scene.pass(50)
  callers.push(scene.call())
  await scene.pass(1_950)
  callers.push(scene.call())
  await scene.pass(2_000)
  callers.push(scene.call())
  await scene.pass(1_000)
  const late = 'HM_DIAL_TIMEOUT'
  assert.deepEqual(fates(callers), [late, late, 'waits', 'waits'])
  await scene.pass(2_000)
  assert.deepEqual(fates(callers), [late, late, late, 'waits'])
  await scene.pass(2_000)
  assert.deepEqual(fates(callers), [late, late, late, late])
  await scene.pass(20_000)
  assert.deepEqual(scene.dials, [0, 5_000])
})

test('a host that never answers is dialed once at a time, however many come meanwhile', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const callers: Caller[] = []
  for (let ms = 0; ms < 20_000; ms += 200) {
    callers.push(scene.call())
    await scene.pass(200)
  }
  await scene.pass(TIMEOUT_MS)
  assert.deepEqual([...new Set(fates(callers))], ['HM_DIAL_TIMEOUT'])
  assert.deepEqual(scene.dials, [0, 5_000, 10_000, 15_000, 20_000])
})

test('who has somewhere else to go is told at once', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const first = scene.call()
  await scene.pass(4_000)
  const callers = [first, scene.call(false)]
  await scene.pass(1_000)
  assert.deepEqual(fates(callers), ['HM_DIAL_TIMEOUT', 'HM_DIAL_TIMEOUT'])
  assert.deepEqual(scene.dials, [0])
})

test('a sidecar that answers a caller who has given up is not left with a connection', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const sockets = scene.asSidecar()
  scene.call()
  await scene.pass(2_000)
  const later = scene.call()
  await scene.pass(3_000)
  await scene.pass(2_000)
  assert.equal(later.fate, 'HM_DIAL_TIMEOUT')
  scene.thaw()
  await eventually(() => assert.deepEqual([sockets.length, sockets[0]?.destroyed], [1, true]))
})

test('a refusal is an answer to all who wait', async () => {
  await using undo = new AsyncDisposableStack()
  const scene = await startScene(undo)
  const callers = [scene.call()]
  await scene.pass(4_000)
  callers.push(scene.call())
  scene.refuse()
  await scene.pass(0)
  assert.deepEqual(fates(callers), ['HM_DIAL_FAILED', 'HM_DIAL_FAILED'])
  assert.deepEqual(scene.dials, [0])
})
