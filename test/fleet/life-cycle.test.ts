/**
 * What a fleet sees of a daemon that is restarted, reloaded or killed, under 50 new connections a second through it:
 * nobody is refused, and nobody waits long. On machines with systemd, which keeps the listening sockets meanwhile.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import type { StatusDocument } from '../../src/model/admin.ts'
import { eventually, patient } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { Controller } from './controller.ts'
import { Machine } from './machine.ts'
import {
  catalogOf,
  DB_PORT,
  DB_VIRTUAL_IP,
  db,
  enableWebAndDb,
  rollOut,
  statusOnceWell,
  web,
  webAndDbFiles,
  webReachesDb,
} from './web-and-db.ts'

const UPSTREAM_PORT = 9000
const TARGETS = [`${DB_VIRTUAL_IP}:${DB_PORT}`, `127.0.0.1:${UPSTREAM_PORT}`]
const CALLS_PER_SECOND = 50

/** What a call may wait, milliseconds. */
const RESTART_LIMIT_MS = 3_000

const RELOAD_LIMIT_MS = 1_000

/** What dial.py says. */
interface Dialed {
  readonly calls: number
  readonly failures: readonly string[]
  readonly slowestMs: number
  readonly p99Ms: number
}

const cleanUp = new AsyncDisposableStack()
let a: Machine
let b: Machine

before(async () => {
  const network = cleanUp.use(await Network.create(['a', 'b']))
  const controller = cleanUp.use(await Controller.create(network.wire))
  const files = {
    '/root/.ssh/authorized_keys': controller.publicKey,
    '/usr/local/lib/dial.py': await readFile(join(import.meta.dirname, 'dial.py'), 'utf8'),
    '/usr/local/lib/squatter.py': await readFile(
      join(import.meta.dirname, '../harness/services/squatter.py'),
      'utf8',
    ),
    ...(await webAndDbFiles()),
  }
  a = cleanUp.use(await Machine.create('host-a', network.host('a'), files))
  b = cleanUp.use(await Machine.create('host-b', network.host('b'), files))
  await Promise.all([a.boot(), b.boot()])
  await enableWebAndDb(a, b)
  const caller = { ...web, upstreams: [{ destination: 'db', bindPort: UPSTREAM_PORT }] }
  await rollOut(
    controller,
    new Map([
      [a, [caller]],
      [b, [db]],
    ]),
    { catalog: catalogOf(b) },
  )
  await Promise.all([statusOnceWell(a), statusOnceWell(b)])
  await webReachesDb(a)
})

after(() => cleanUp.disposeAsync())

test('systemd keeps every listening socket', async () => {
  const kept = Number(await a.property('NFileDescriptorStore'))
  // Capture and upstream of web, capture for IPv6, tunnel, DNS twice.
  assert.equal(kept, 6)
})

for (const side of ['caller', 'callee'] as const) {
  test(`a restart of the ${side}'s daemon refuses nobody and keeps nobody waiting`, async () => {
    const machine = side === 'caller' ? a : b
    const { dialed } = await underLoad(() =>
      machine.must('systemctl', 'restart', 'hostmesh.service'),
    )
    assert.deepEqual(dialed.failures, [])
    assert.ok(dialed.slowestMs < patient(RESTART_LIMIT_MS), `slowest ${dialed.slowestMs} ms`)
    await statusOnceWell(machine)
  })

  test(`a kill of the ${side}'s daemon refuses nobody`, async () => {
    const machine = side === 'caller' ? a : b
    const restarts = await machine.restarts()
    const { dialed } = await underLoad(async () => {
      await machine.must('systemctl', 'kill', '--kill-whom=main', '--signal=KILL', 'hostmesh')
      await eventually(async () => assert.equal(await machine.restarts(), restarts + 1))
      await statusOnceWell(machine)
    })
    // Those that were being answered in that moment are broken off; nobody is turned away.
    const refused = dialed.failures.filter((line) => /Refused|timed out/i.test(line))
    assert.deepEqual(refused, [])
    assert.ok(dialed.failures.length <= dialed.calls / 100, dialed.failures.join('\n'))
    assert.ok(dialed.p99Ms < patient(RESTART_LIMIT_MS), `99 % within ${dialed.p99Ms} ms`)
  })
}

for (const side of ['caller', 'callee'] as const) {
  test(`a reload of the ${side}'s daemon is noticed by nobody, and systemd follows the new process`, async () => {
    const machine = side === 'caller' ? a : b
    const former = await machine.property('MainPID')
    const { dialed } = await underLoad(() =>
      machine.must('systemctl', 'reload', 'hostmesh.service'),
    )
    assert.deepEqual(dialed.failures, [])
    assert.ok(dialed.slowestMs < patient(RELOAD_LIMIT_MS), `slowest ${dialed.slowestMs} ms`)
    const status = await statusOnceWell(machine)
    assert.notEqual(String(status.pid), former)
    assert.equal(await machine.property('MainPID'), String(status.pid))
    assert.equal(await machine.property('ActiveState'), 'active')
    await eventually(async () => assert.equal((await machine.run('kill', '-0', former)).code, 1))
    // It is watched as the first one was.
    const restarts = await machine.restarts()
    await machine.must('kill', '-KILL', String(status.pid))
    await eventually(async () => assert.equal(await machine.restarts(), restarts + 1))
    await statusOnceWell(machine)
  })
}

test('a reload with a broken configuration fails and says why, and everything goes on', async () => {
  const pid = await a.property('MainPID')
  await a.must('sed', '-i', '1i workers: many', '/etc/hostmesh/hostmesh.yaml')
  const { dialed } = await underLoad(async () => {
    const { code, stderr } = await a.run('systemctl', 'reload', 'hostmesh.service')
    assert.notEqual(code, 0, stderr)
  })
  assert.deepEqual(dialed.failures, [])
  assert.match(await a.must('journalctl', '-u', 'hostmesh', '-n', '20'), /workers/)
  assert.match((await a.run('hostmesh', 'status')).stdout, /workers/)
  assert.equal(await a.property('MainPID'), pid)
  await a.must('sed', '-i', '1d', '/etc/hostmesh/hostmesh.yaml')
})

test('a restart with an open connection lets it go on for its grace, and then breaks it off', async () => {
  const open = openConnection()
  const { dialed, tookMs } = await underLoad(() =>
    a.must('systemctl', 'restart', 'hostmesh.service'),
  )
  assert.deepEqual(dialed.failures, [])
  assert.ok(dialed.slowestMs < patient(RESTART_LIMIT_MS), `slowest ${dialed.slowestMs} ms`)
  assert.ok(tookMs >= 5_000, `the grace of 5 s was kept: ${tookMs} ms`)
  const [how, seconds] = (await open).split(' ')
  assert.equal(how, 'ConnectionResetError')
  assert.ok(Number(seconds) >= 5, `it went on for ${seconds} s`)
})

test('who takes the ports of a stopped daemon gets nothing, and it starts and serves all the same', async () => {
  await a.must('systemctl', 'stop', 'hostmesh.service')
  const targets = [
    ['tcp', '127.0.0.1', UPSTREAM_PORT],
    ['tcp', '::', 15_443],
    ['udp', '127.0.0.1', 15_053],
    ['tcp', '127.0.0.1', 15_053],
  ]
  const squatter = ['python3', '/usr/local/lib/squatter.py', JSON.stringify(targets)]
  await a.must('systemd-run', '--quiet', '--unit=squatter', '--uid=nobody', ...squatter)
  const said = (): Promise<string> => a.must('journalctl', '--unit=squatter', '--output=cat')
  await eventually(async () =>
    assert.equal((await said()).match(/"bound"/g)?.length, targets.length),
  )
  assert.match(await callUpstream(), /ConnectionRefusedError/)
  await a.must('systemctl', 'start', 'hostmesh.service')
  // Well or not: it names what it has found.
  const { problems } = await eventually(async () => {
    const { stdout } = await a.run('hostmesh', 'status', '-o', 'json')
    const status = JSON.parse(stdout) as StatusDocument
    assert.equal(status.ready, true)
    return status
  })
  assert.deepEqual([...new Set(problems.map(({ code }) => code))], ['HM_PORT_TAKEN'])
  const { dialed } = await underLoad(() => pause(1_000))
  assert.deepEqual(dialed.failures, [])
  assert.doesNotMatch(await said(), /took/)
  await a.must('systemctl', 'stop', 'squatter.service')
  await a.must('systemctl', 'restart', 'hostmesh.service')
  await statusOnceWell(a)
})

/** How a call of web's to its upstream port ends. */
function callUpstream(): Promise<string> {
  const program = `
import socket
try:
    print(socket.create_connection(("127.0.0.1", ${UPSTREAM_PORT}), 5).recv(1))
except OSError as error:
    print(type(error).__name__)
`
  return a.must('python3', '-c', program)
}

/** Opens a connection as web, says nothing and tells how it ended, and after how many seconds. */
function openConnection(): Promise<string> {
  const program = `
import socket, time
with open("/sys/fs/cgroup/system.slice/web.service/cgroup.procs", "w") as procs: procs.write("0")
connection = socket.create_connection(("${DB_VIRTUAL_IP}", ${DB_PORT}), 30)
began = time.time()
try:
    outcome = repr(connection.recv(1))
except OSError as error:
    outcome = type(error).__name__
print(outcome, time.time() - began)
`
  return a.must('python3', '-c', program)
}

/** Does something while web calls db, from a second before to a second after. */
async function underLoad(
  act: () => Promise<unknown>,
): Promise<{ readonly dialed: Dialed; readonly tookMs: number }> {
  const stop = '/run/dial.stop'
  const rate = String(CALLS_PER_SECOND)
  const program = ['python3', '/usr/local/lib/dial.py', stop, 'web.service', rate, ...TARGETS]
  const dialing = a.must(...program)
  await pause(2_000)
  const startMs = performance.now()
  await act()
  const tookMs = performance.now() - startMs
  await pause(1_000)
  await a.must('touch', stop)
  const dialed = JSON.parse(await dialing) as Dialed
  assert.ok(dialed.calls > CALLS_PER_SECOND, `only ${dialed.calls} calls`)
  return { dialed, tookMs }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
