/**
 * An instance is reached for somebody who is no TCP connection and stands in no table: what HTTP will do.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { Balancer } from '../../src/dataplane/balance/picker.ts'
import { ReplayableBytes } from '../../src/dataplane/proxy/early-bytes.ts'
import { Outcomes } from '../../src/dataplane/proxy/outcomes.ts'
import { Reach } from '../../src/dataplane/proxy/reach.ts'
import type { WorkerContext } from '../../src/dataplane/proxy/worker-context.ts'
import { systemClock } from '../../src/lib/clock.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import {
  readTraffic,
  TrafficCounters,
  trafficLayout,
  WorkerCounters,
} from '../../src/telemetry/counters.ts'
import { looseAccount } from '../unit/account-fixtures.ts'
import { FakeStream } from '../unit/fake-stream.ts'
import {
  endpoint,
  freePort,
  localService,
  read,
  snapshotOf,
  startApplication,
} from './dataplane-fixtures.ts'
import { Collector } from './tunnel-fixtures.ts'

/** Reaches db for web on a host where its instances listen at these ports; the first in the list is picked first. */
function reach(ports: readonly number[], action: 'allow' | 'deny' = 'allow') {
  const instances = ports.map((port, i) =>
    endpoint('db', port, { id: `db-${port}`, local: true, priority: i }),
  )
  const snapshot = { ...snapshotOf('db', instances, [['web', action]]), version: 1, datacenter: '' }
  const memory = TrafficCounters.createMemory()
  const balancer = new Balancer(systemClock, () => 0)
  const account = looseAccount()
  const caller = new FakeStream()
  const early = new ReplayableBytes(caller, account)
  const context = {
    balancer,
    counters: new TrafficCounters(memory, () => undefined),
    workerCounters: new WorkerCounters(WorkerCounters.createMemory()),
    outcomes: new Outcomes(),
    log: silentLog,
    timeouts: { connectMs: 3_000, handshakeMs: 3_000, readyMs: 3_000 },
    snapshot: () => snapshot,
    localInstance: (name: string, id: string | undefined) => {
      const port = Number(id?.slice(3))
      return localService(name, { target: { ip: '127.0.0.1', port } })
    },
  } as Partial<WorkerContext> as WorkerContext
  const request = {
    source: 'web',
    account,
    from: undefined,
    originalDestination: undefined,
    startedMs: performance.now(),
  }
  const [cluster] = snapshot.services.get('db')!.clusters
  return {
    reach: new Reach(context, request, early, { service: 'db', cluster, pinned: undefined }),
    early,
    account,
    inFlight: () => instances.map((each: Endpoint) => balancer.peek(each)?.inFlight),
    failures: () => {
      const labels = { reporter: 'source', source: 'web', destination: 'db' } as const
      const [row] = readTraffic(memory, [undefined, undefined, labels])
      return row && trafficLayout.read(row.cells).connectFailures
    },
  }
}

test('its way is a value: a stream, to which instance, and who decided', async () => {
  await using application = await startApplication()
  const scene = reach([application.port])
  const { stream, endpoint: reached, ...rest } = await scene.reach.run()
  assert.equal(reached.id, `db-${application.port}`)
  assert.deepEqual(rest, { peer: undefined, certificates: undefined, decidedHere: true })
  assert.equal(scene.reach.decidedFor, 'db')
  assert.equal(scene.account.descriptors.used, 0, 'counted by whoever has the stream')
  assert.deepEqual(scene.inFlight(), [1], 'until that says that it is finished')
  const answer = new Collector(stream)
  scene.early.handOver(stream)
  stream.resume()
  stream.write(Buffer.from('ping'))
  const socket = await application.next()
  assert.equal(await read(socket, 4), 'ping')
  socket.end('pong')
  await answer.until(() => answer.ended)
  assert.equal(answer.bytes.toString(), 'pong')
  stream.reset()
})

test('an instance that cannot be reached is left for another one, and is in flight no more', async () => {
  await using application = await startApplication()
  const scene = reach([await freePort(), application.port])
  const { stream, endpoint: reached } = await scene.reach.run()
  assert.equal(reached.id, `db-${application.port}`)
  assert.deepEqual(scene.inFlight(), [0, 1])
  assert.equal(scene.failures(), 1)
  stream.reset()
  const socket = await application.next()
  if (socket.errored === null) await once(socket, 'error')
})

test('a denial is no reason to try another', async () => {
  await using application = await startApplication()
  const scene = reach([application.port, await freePort()], 'deny')
  await assert.rejects(scene.reach.run(), (error) => errorCode(error) === 'HM_POLICY_DENIED')
  assert.deepEqual(scene.inFlight(), [0, undefined])
  assert.equal(scene.failures(), 1)
  assert.equal(scene.reach.decidedFor, undefined)
  assert.deepEqual(application.connections, [])
})
