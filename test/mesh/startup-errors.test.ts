/**
 * What is wrong is said at the start, in one sentence that names it, with an exit code scripts can use; and
 * a mistake made later disturbs nothing that runs.
 */
import assert from 'node:assert/strict'
import { chmod, mkdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually, within } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'

test('a host that cannot start says why', async (t) => {
  await using mesh = await startMesh({ hosts: ['a'], catalog: 'file' })
  const a = mesh.host('a')
  const db = await a.service('db', { listens: 5432 }).start()
  await mesh.prepare(a)
  const before = await a.namespace.rules()

  await t.test(
    'every mistake of a configuration is named with its place, and the exit code is 2',
    async () => {
      const text =
        'catalog: { kind: file, path: c.yaml }\ncertificates: { kind: builtin, directory: . }\nworkres: 2\ntunnel:\n  port: 70000\n'
      const path = join(mesh.folder, 'broken.yaml')
      await writeFile(path, text, { mode: 0o600 })
      const { code, stderr } = await a.daemon.command('run', '--config', path)
      assert.equal(code, 2)
      assert.match(stderr, /broken\.yaml:3:1: .*workers/)
      assert.match(stderr, /broken\.yaml:5:9: .*tunnel\.port/)
      assert.doesNotMatch(stderr, /\n\s+at /, 'no stack')
    },
  )

  await t.test('a tunnel port in use is named, and nothing is left behind', async () => {
    await db.workload.listen('::', 15_443, 'manual')
    const { code, said } = await failToStart(a)
    assert.equal(code, 1)
    assert.match(said, /15443/)
    assert.match(said, /in use/i)
    await db.workload.ask({ op: 'unlisten' })
    await db.workload.listen('::', 5432, 'echo')
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('a missing iptables is named with what to install', async () => {
    const { code, said } = await failToStart(a, [
      'env',
      `PATH=${await pathWithout('iptables', mesh.folder)}`,
    ])
    assert.equal(code, 1)
    assert.match(said, /iptables/)
    assert.match(said, /install/)
  })

  await t.test('a missing capability is named', async () => {
    const { code, said } = await failToStart(a, [
      ...['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin', '--no-new-privs'],
    ])
    assert.notEqual(code, 0)
    assert.match(said, /CAP_NET_ADMIN/)
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('a broken certificate is named', async () => {
    const folder = mesh.catalog.certificateFolder('a')
    const config = {
      ...a.config(),
      certificates: { kind: 'builtin' as const, directory: `${folder}-broken` },
    }
    await mkdir(`${folder}-broken`, { recursive: true })
    await a.daemon.writeConfig(config)
    await a.daemon.launch()
    await eventually(() => assert.match(a.daemon.log, new RegExp(`${folder}-broken`)))
    if (a.daemon.isRunning) {
      await eventually(async () => assert.equal((await a.daemon.status()).ready, false))
      await a.daemon.stop()
    }
    await a.daemon.writeConfig(a.config())
  })

  await t.test('a second daemon is kept out and the first goes on', async () => {
    await a.daemon.start()
    const second = await a.daemon.command('run', '--config', a.daemon.configPath)
    assert.equal(second.code, 1)
    assert.match(second.stderr, /admin\.sock|already/i)
    assert.equal((await a.daemon.status()).ready, true)
    await chmod(a.daemon.configPath, 0o600)
  })

  await t.test(
    'a broken catalog file changes nothing that runs, and the status says so',
    async () => {
      const good = await a.daemon.services()
      await writeFile(mesh.catalog.path, 'services: [ { Name: db, Instances: [ {')
      await eventually(async () => {
        const { catalog } = await a.daemon.status()
        assert.match(catalog.problems.join(), /catalog\.yaml/)
      })
      assert.deepEqual(await a.daemon.services(), good)
      await db.join()
      await eventually(async () => assert.deepEqual((await a.daemon.status()).catalog.problems, []))
    },
  )

  await t.test('a broken configuration at SIGHUP is reported and nothing changes', async () => {
    await writeFile(a.daemon.configPath, 'workers: many\n')
    a.daemon.signal('SIGHUP')
    await eventually(() => assert.match(a.daemon.log, /hostmesh\.yaml.*workers/))
    assert.equal((await a.daemon.status()).ready, true)
  })
})

async function failToStart(
  host: Host,
  prefix: readonly string[] = [],
): Promise<{ code: number | null; said: string }> {
  const from = host.daemon.log.length
  await host.daemon.launch(prefix)
  const { code } = await within(
    10_000,
    `The end of a daemon that cannot start; it said ${host.daemon.log.slice(from)}`,
    host.daemon.exited,
  ).finally(() => host.daemon.kill())
  return { code, said: host.daemon.log.slice(from) }
}

/** A folder of links to everything on the PATH but the commands that begin with `word`. */
async function pathWithout(word: string, folder: string): Promise<string> {
  const { readdir } = await import('node:fs/promises')
  const bin = join(folder, `path-without-${word}`)
  await mkdir(bin)
  const seen = new Set<string>()
  for (const from of ['/usr/sbin', '/usr/bin', '/sbin', '/bin']) {
    for (const name of await readdir(from)) {
      if (seen.has(name) || name.includes(word) || name.startsWith('ip6tables')) continue
      seen.add(name)
      await symlink(join(from, name), join(bin, name))
    }
  }
  return bin
}
