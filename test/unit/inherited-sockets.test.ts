/** What a daemon is started with: descriptors of systemd or of its predecessor, and what becomes of them. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { describe, test } from 'node:test'
import { localServices } from '../../src/config/local-services.ts'
import { configSchema } from '../../src/config/schema.ts'
import { ListeningSockets, type PlannedSocket } from '../../src/daemon/listening-sockets.ts'
import { isRestartQueued, unitOf } from '../../src/daemon/stop-cause.ts'
import {
  capturedService,
  localListeners,
  tunnelListeners,
} from '../../src/dataplane/listener-plan.ts'
import { boundPort, isPortFree, openListeningSocket } from '../../src/lib/listening-socket.ts'
import { silentLog } from '../../src/lib/log.ts'
import { inheritedSockets } from '../../src/lib/systemd.ts'
import { freePort, localService } from '../integration/dataplane-fixtures.ts'

describe('the variables of systemd', () => {
  const environment = { LISTEN_PID: '77', LISTEN_FDS: '2', LISTEN_FDNAMES: 'tunnel/0:dns/udp' }

  test('name the descriptors from 3 up', () => {
    assert.deepEqual(inheritedSockets(environment, 77), [
      { name: 'tunnel/0', fd: 3 },
      { name: 'dns/udp', fd: 4 },
    ])
  })

  test('are accepted only by the process they are for, and only when they are valid', () => {
    assert.deepEqual(inheritedSockets(environment, 78), [])
    for (const LISTEN_FDS of ['', '0', '-1', 'two', '1e9', undefined])
      assert.deepEqual(inheritedSockets({ ...environment, LISTEN_FDS }, 77), [])
    assert.deepEqual(inheritedSockets({}, 77), [])
  })
})

describe('a stop and a restart', () => {
  test('are told apart by the job of the unit', () => {
    const jobs = ' 97 other.service restart waiting\n 98 hostmesh.service stop running\n'
    assert.equal(isRestartQueued(jobs, 'hostmesh.service'), false)
    assert.equal(isRestartQueued(jobs, 'other.service'), true)
    assert.equal(isRestartQueued('12 hostmesh.service restart running', 'hostmesh.service'), true)
    assert.equal(isRestartQueued('No jobs running.', 'hostmesh.service'), false)
  })

  test('concern the unit that the process is in, with either version of cgroups', () => {
    assert.equal(unitOf('0::/system.slice/hostmesh.service\n'), 'hostmesh.service')
    assert.equal(
      unitOf('4:memory:/x\n1:name=systemd:/system.slice/hostmesh.service\n0::/\n'),
      'hostmesh.service',
    )
    assert.equal(unitOf('0::/user.slice/user-0.slice/session-1.scope\n'), undefined)
  })
})

describe('inherited sockets', () => {
  const forgotten: string[] = []
  const kept: string[] = []
  const keeper = {
    keep: (name: string) => kept.push(name),
    forget: (name: string) => forgotten.push(name),
  }
  const plan = (name: string, port: number): PlannedSocket => ({
    name,
    kind: 'tcp',
    address: { ip: '127.0.0.1', port },
    transparent: false,
    isOptional: false,
  })

  test('are used when they are what is planned, with who waits in them; others are closed everywhere', async () => {
    const [same, moved, former, next] = await Promise.all([1, 2, 3, 4].map(() => freePort()))
    assert.ok(same !== undefined && moved !== undefined && former !== undefined)
    assert.ok(next !== undefined)
    const open = (port: number): number =>
      openListeningSocket({ kind: 'tcp', ip: '127.0.0.1', port })
    const inherited = [
      { name: 'same', fd: open(same) },
      { name: 'moved', fd: open(moved) },
      { name: 'former', fd: open(former) },
    ]
    const waiting = connect(same, '127.0.0.1')
    await once(waiting, 'connect')
    using sockets = new ListeningSockets(silentLog, { keeper, inherited })
    assert.equal(sockets.inheritedPorts().get('former'), former)
    assert.equal(sockets.take(plan('same', same)), inherited[0]?.fd)
    assert.equal(boundPort(sockets.take(plan('moved', next)) ?? -1), next)
    sockets.closeUnused()
    assert.deepEqual(forgotten, ['moved', 'former'])
    assert.deepEqual(kept, ['same', 'moved'])
    assert.deepEqual([same, moved, former, next].map(isPortFree), [false, true, true, false])
    waiting.destroy()
  })

  test('beyond what is needed are taken as they are, and none is opened in their place', async () => {
    const [same, moved] = await Promise.all([1, 2].map(() => freePort()))
    assert.ok(same !== undefined && moved !== undefined)
    const open = (name: string, port: number): { name: string; fd: number } => ({
      name,
      fd: openListeningSocket({ kind: 'tcp', ip: '127.0.0.1', port }),
    })
    const inherited = [open('listener/1', same), open('listener/2', moved)]
    using sockets = new ListeningSockets(silentLog, { keeper, inherited })
    kept.length = 0
    forgotten.length = 0
    assert.equal(sockets.takeInherited(plan('listener/1', same)), inherited[0]?.fd)
    assert.equal(sockets.takeInherited(plan('listener/2', same)), undefined)
    assert.equal(sockets.takeInherited(plan('listener/3', same)), undefined)
    assert.deepEqual([kept, forgotten], [['listener/1'], ['listener/2']])
    assert.deepEqual([...sockets.all().keys()], ['listener/1'])
    assert.ok(isPortFree(moved))
  })
})

describe('capture ports', () => {
  const config = configSchema.parse({
    catalog: { kind: 'file', path: 'c.yaml' },
    certificates: { kind: 'files', directory: 'certs' },
    dns: { port: 15_103 },
    services: ['a', 'b', 'c'].map((name) => ({ name, identity: { user: name } })),
  })
  const portsOf = (options?: Parameters<typeof localServices>[1]): unknown =>
    localServices(config, options).map(({ capturePort }) => capturePort)

  test('are given out in order', () => {
    assert.deepEqual(portsOf(), [15_100, 15_101, 15_102])
  })

  test('stay with the service whose socket is bound there', () => {
    const bound = new Map([
      ['c', 15_100],
      ['gone', 15_101],
    ])
    assert.deepEqual(portsOf({ bound, isFree: () => true }), [15_104, 15_105, 15_100])
  })

  test('that somebody else has are passed over, and so are those with another use', () => {
    const isFree = (port: number): boolean => port !== 15_101
    assert.deepEqual(portsOf({ bound: new Map(), isFree }), [15_100, 15_104, 15_102])
  })

  test('are the first choice when there is none', () => {
    assert.deepEqual(portsOf({ bound: new Map(), isFree: () => false }), [15_100, 15_101, 15_102])
  })
})

test('listeners have unique names that systemd accepts', () => {
  const settings = {
    captures: true,
    captureAddresses: ['127.0.0.1', '::1'],
    capturesTransparently: true,
    tunnel: { ip: '::', port: 1 },
    services: [
      localService('web', {
        id: 'web:1',
        capturePort: 2,
        connectPort: 5,
        target: { ip: '127.0.0.1', port: 9 },
        upstreams: [
          { destination: 'db', bind: { ip: '127.0.0.1', port: 3 } },
          { destination: 'api', bind: { ip: '::1', port: 3 } },
        ],
      }),
      localService('web', { id: 'web:2', capturePort: 4 }),
    ],
  }
  const names = [...localListeners(settings), ...tunnelListeners(settings)].map(({ name }) => name)
  assert.equal(new Set(names).size, names.length)
  for (const name of names) assert.match(name, /^[!-9;-~]{1,250}$/)
  assert.deepEqual(
    localListeners(settings).map(({ kind, name }) => [kind, capturedService(name)]),
    [
      ['capture', 'web:1'],
      ['capture', 'web:1'],
      ['upstream', undefined],
      ['upstream', undefined],
      ['capture', 'web:2'],
      ['capture', 'web:2'],
    ],
  )
})
