/**
 * The promise of capture: what a workload addresses to a mesh service never leaves in plaintext, whatever has become of
 * the daemon or of the rules, unless `capture.permissive` says so for that service. A canary in every connection, and a
 * recording of the wire.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import type { BackendKind } from '../../src/model/capture-backend.ts'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import type { RunningService } from '../harness/service.ts'
import { canary } from '../harness/wire-capture.ts'

/** How an application is told that nobody is there. */
const REFUSED = { code: 'ECONNREFUSED' }

interface Stage {
  readonly mesh: Mesh
  readonly a: Host
  readonly b: Host
  readonly web: RunningService
}

async function stage(backend: BackendKind, permissive: readonly string[] = []): Promise<Stage> {
  const mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  a.configure({ capture: { mode: 'on', backend, permissive: [...permissive] } })
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  return { mesh, a, b, web }
}

/** Declares the claims for one backend. */
export function testStopped(backend: BackendKind): void {
  test(`strict, by ${backend}: a stopped daemon refuses, a killed one too, and nothing leaks`, async () => {
    const { mesh, a, b, web } = await stage(backend)
    await using ended = mesh
    const wire = await ended.listenOnWire()
    const stranger = await a.stranger().start()
    const { ip, port } = await mesh.virtualAddress('db', a)
    for (const end of ['stop', 'kill'] as const) {
      const secret = canary()
      const open = await web.workload.dial(b.namespace.ip, 5432)
      await open.write('before\n')
      assert.match(await open.readLine(), /"service":"db"/)
      await (end === 'stop' ? a.daemon.stop() : a.daemon.kill())
      await assert.rejects(web.callAddress(b.namespace.ip, 5432), REFUSED)
      await assert.rejects(web.callAddress(ip, port), REFUSED)
      for (let i = 0; i < 2; i += 1) await open.write(secret).catch(() => undefined)
      await open.reset().catch(() => undefined)
      // The recording has caught up once it has seen what was sent after it.
      const marker = canary()
      const after = await stranger.workload.dial(b.namespace.ip, 5432)
      await after.write(`${marker}\n`)
      await after.readLine()
      await wire.sees(marker)
      await after.reset()
      assert.equal(await wire.has(secret), false, `${end}: the canary was seen on the wire`)
      await a.daemon.start()
      await eventually(() => web.call('db'))
    }
  })

  test(`by ${backend}: a flush of all rules while a stopping daemon drains lets nothing out`, async () => {
    const { mesh, a, b, web } = await stage(backend)
    await using ended = mesh
    const secret = canary()
    await using watch = await watchForPlaintext(a.namespace, secret)
    const speak = async (): Promise<void> => {
      const socket = await web.workload.dial(b.namespace.ip, 5432)
      await socket.write(`${secret}-1\n`)
      await socket.readLine()
    }
    const ownRules = async (): Promise<string[]> =>
      (await a.namespace.rules()).split('\n').filter((line) => /hostmesh/i.test(line))
    const open = await web.workload.dial(b.namespace.ip, 5432)
    await open.write('before\n')
    assert.match(await open.readLine(), /"service":"db"/)
    const planned = (await ownRules()).toSorted()
    const stopped = a.daemon.stop()
    await eventually(async () => {
      const { problems } = await a.daemon.status()
      assert.ok(problems.some(({ code }) => code === 'HM_HOST_DRAINING'))
    })
    await a.namespace.run('nft', 'flush', 'ruleset')
    await assert.rejects(speak)
    await open.write(`${secret}-2\n`).catch(() => undefined)
    await eventually(async () => assert.deepEqual((await ownRules()).toSorted(), planned))
    await assert.rejects(speak, REFUSED)
    await open.write(`${secret}-3\n`).catch(() => undefined)
    await open.reset().catch(() => undefined)
    await stopped
    await assert.rejects(speak, REFUSED)
    await watch.assertNone()
    await a.daemon.start()
    await eventually(() => web.call('db'))
    await ended.settled()
  })

  test(`permissive, by ${backend}: what the service is named for passes while the daemon is stopped, and is counted`, async () => {
    const { mesh, a, b, web } = await stage(backend, ['db'])
    await using ended = mesh
    assert.match((await web.callAddress(b.namespace.ip, 5432)).from, /127\.0\.0\.1|::1/)
    await a.daemon.stop()
    const answer = await web.callAddress(b.namespace.ip, 5432)
    assert.match(answer.from, new RegExp(`${a.namespace.ip}$`), 'it came directly')
    const { stdout } = await a.daemon.command('capture', 'show')
    assert.match(stdout, /Passed without the mesh \(capture\.permissive\): 1/)
    await a.daemon.start()
    await eventually(async () =>
      assert.match((await web.callAddress(b.namespace.ip, 5432)).from, /127\.0\.0\.1|::1/),
    )
    await ended.settled()
  })

  test(`by ${backend} the guard from a kept plan alone refuses, before there is a daemon`, async () => {
    const { mesh, a, b, web } = await stage(backend)
    await using ended = mesh
    await a.daemon.stop()
    assert.equal((await a.daemon.command('capture', 'clear')).code, 0)
    assert.match(
      (await web.callAddress(b.namespace.ip, 5432)).from,
      new RegExp(`${a.namespace.ip}$`),
    )
    const kept = join(a.daemon.stateFolder, 'capture.json')
    const applied = await a.daemon.command('capture', 'guard', 'apply', '--from', kept)
    assert.equal(applied.code, 0, applied.stderr)
    await assert.rejects(web.callAddress(b.namespace.ip, 5432), REFUSED)
    await assert.rejects(web.callAddress('240.1.2.3', 80), REFUSED)
    const shown = await a.daemon.command('capture', 'guard', 'show')
    assert.match(shown.stdout, /Refused: [2-9]/)
    await a.daemon.start()
    await eventually(() => web.call('db'))
    assert.equal((await a.daemon.command('capture', 'guard', 'clear')).code, 0)
    await ended.settled()
  })
}
