/**
 * Ports of the daemon are the daemon's, also while it is stopped: a local user who binds one gets nothing that is sent
 * there, and keeps the daemon neither from starting nor from serving there.
 */
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import type { OwnedProcess } from '../harness/owned-process.ts'
import { runCommand } from '../harness/owned-process.ts'
import type { RunningService } from '../harness/service.ts'

/** As text: its user may not be allowed to read the checkout. */
const script = readFileSync(join(import.meta.dirname, '../harness/services/squatter.py'), 'utf8')

const UPSTREAM = 9_001
const TUNNEL = 15_443
const DNS = 15_053
const CAPTURE = 15_100

type Target = readonly [kind: 'tcp' | 'udp', ip: string, port: number]

/** The ports at which something of the mesh is sent; the capture port is the daemon's to choose anew. */
const PORTS: readonly Target[] = [
  ['tcp', '127.0.0.1', UPSTREAM],
  ['tcp', '::', TUNNEL],
  ['udp', '127.0.0.1', DNS],
  ['tcp', '127.0.0.1', DNS],
]

/** What `localhost` may mean as well. */
const TWIN: Target = ['tcp', '::1', UPSTREAM]

/** A port of nobody. */
const OTHER: Target = ['tcp', '127.0.0.1', 9_999]

const REFUSED = { code: 'ECONNREFUSED' }

interface Squatter {
  readonly process: OwnedProcess
  /** Targets that it has, as `tcp 127.0.0.1 9001`. */
  readonly bound: () => readonly string[]
  readonly took: () => readonly unknown[]
}

async function squat(host: Host, targets: readonly Target[]): Promise<Squatter> {
  const process = await host
    .stranger()
    .spawn(['/usr/bin/python3', '-c', script, JSON.stringify(targets)])
  const said = (): Record<string, unknown>[] =>
    process.output
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>)
  return {
    process,
    bound: () => said().flatMap(({ bound }) => (typeof bound === 'string' ? [bound] : [])),
    took: () => said().filter(({ took }) => took !== undefined),
  }
}

function names(targets: readonly Target[]): string[] {
  return targets.map((target) => target.join(' ')).toSorted()
}

/** What the resolver of a host says of db.mesh: the first line of dig's answer or complaint. */
async function resolve(host: Host, way: '+tcp' | '+notcp'): Promise<string> {
  const options = `@127.0.0.1 -p ${DNS} +tries=1 +time=1 +short ${way} db.mesh`
  const { stdout } = await runCommand(host.namespace.inside(['dig', ...options.split(' ')]))
  return stdout.trim()
}

test('a local user who takes our ports gets nothing and stops nothing', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web', { upstreams: { db: UPSTREAM } }).start()
  await a.service('api', { listens: 8_080 }).start()
  const remote = await b.service('db', { listens: 5_432 }).start()
  await mesh.allow('web', 'db')
  await mesh.allow('db', 'api')
  await mesh.up()
  const serves = async (): Promise<void> => {
    const service = async (call: () => ReturnType<RunningService['call']>): Promise<string> =>
      (await eventually(call)).service
    assert.equal(await service(() => web.callPort(UPSTREAM)), 'db')
    assert.equal(await service(() => web.call('db')), 'db')
    assert.equal(await service(() => remote.call('api')), 'api')
    for (const way of ['+notcp', '+tcp'] as const)
      assert.match(await resolve(a, way), /^240\./, way)
  }
  await serves()

  await t.test('while the daemon runs nobody can bind one of them', async () => {
    const squatter = await squat(a, [...PORTS, TWIN, ['tcp', '127.0.0.1', CAPTURE], OTHER])
    // Its own port says that it has tried the others.
    await eventually(() => assert.deepEqual(squatter.bound(), names([OTHER])))
    await serves()
    assert.deepEqual(squatter.bound(), names([OTHER]))
    await squatter.process.stop()
  })

  for (const end of ['stop', 'kill'] as const)
    await t.test(
      `after a ${end} who has bound them gets nothing, and the daemon starts and serves`,
      async () => {
        await (end === 'stop' ? a.daemon.stop() : a.daemon.kill())
        const targets = [...PORTS, TWIN, ['tcp', '127.0.0.1', CAPTURE] as const]
        const squatter = await squat(a, targets)
        await eventually(() => assert.deepEqual(squatter.bound().toSorted(), names(targets)))
        await assert.rejects(web.callPort(UPSTREAM), REFUSED)
        await assert.rejects(web.callAddress('::1', UPSTREAM), REFUSED)
        await assert.rejects(web.callAddress(b.namespace.ip, 5_432), REFUSED)
        // At db's own host: it finds nobody at the tunnel port.
        await assert.rejects(remote.call('api'), { code: 'ECONNRESET' })
        for (const way of ['+notcp', '+tcp'] as const)
          assert.match(await resolve(a, way), /refused/, way)
        await a.daemon.start()
        await serves()
        await assert.rejects(web.callAddress('::1', UPSTREAM), REFUSED)
        const taken = (await a.daemon.status()).problems.filter(
          ({ code }) => code === 'HM_PORT_TAKEN',
        )
        assert.equal(taken.length, PORTS.length, JSON.stringify(taken))
        for (const { message, blocks } of taken) {
          assert.match(message, /^python3 \(pid \d+, user \d+\) has taken .* and gets nothing/)
          assert.equal(blocks, false)
        }
        // Also when another program takes the rules away.
        await a.namespace.run('nft', 'delete', 'table', 'inet', 'hostmesh_ports')
        await serves()
        assert.deepEqual(squatter.took(), [])
        await squatter.process.stop()
        await a.daemon.stop()
        await a.daemon.start()
        await serves()
        assert.deepEqual((await a.daemon.status()).problems, [])
      },
    )

  await t.test('from the boot on, by what the daemon has kept', async () => {
    await a.daemon.stop()
    assert.equal((await a.daemon.command('capture', 'clear')).code, 0)
    assert.doesNotMatch(await a.namespace.rules(), /hostmesh/)
    const kept = join(a.daemon.stateFolder, 'capture.json')
    assert.ok(existsSync(join(a.daemon.stateFolder, 'capture-ports.json')))
    const applied = await a.daemon.command('capture', 'guard', 'apply', '--from', kept)
    assert.equal(applied.code, 0, applied.stderr)
    const squatter = await squat(a, PORTS)
    await eventually(() => assert.deepEqual(squatter.bound().toSorted(), names(PORTS)))
    await assert.rejects(web.callPort(UPSTREAM), REFUSED)
    await assert.rejects(remote.call('api'), { code: 'ECONNRESET' })
    assert.match(await resolve(a, '+notcp'), /refused/)
    await a.daemon.start()
    await serves()
    assert.deepEqual(squatter.took(), [])
  })
})
