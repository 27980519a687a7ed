/**
 * What is wrong is said at the start, in one sentence that names it, with an exit code scripts can use; and
 * a mistake made later disturbs nothing that runs.
 */
import assert from 'node:assert/strict'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { stringify } from 'yaml'

import { eventually, within } from '../harness/eventually.ts'
import { TUNNEL_PORT } from '../harness/file-catalog.ts'
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
        'catalog: { kind: file, path: c.yaml }\ncertificates: { kind: files, directory: . }\nworkres: 2\ntunnel:\n  port: 70000\n'
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
    await db.workload.listen('::', TUNNEL_PORT, 'manual')
    try {
      const { code, said } = await failToStart(a)
      assert.equal(code, 1)
      assert.match(said, new RegExp(`${TUNNEL_PORT}.*in use`))
    } finally {
      await db.workload.ask({ op: 'unlisten' })
      await db.workload.listen('::', 5432, 'echo')
    }
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('a missing iptables is named with what to install', async () => {
    // In a mount namespace of its own, where the folder that iptables is in is empty.
    const hide = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    const { code, said } = await failToStart(a, ['unshare', '--mount', 'sh', '-c', hide, 'sh'])
    assert.equal(code, 1)
    assert.match(said, /iptables-save: it is not installed.*\n.*Install the package iptables/)
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('a missing capability is named', async () => {
    const { code, said } = await failToStart(a, [
      'setpriv',
      '--bounding-set=-net_admin',
      '--inh-caps=-net_admin',
      '--no-new-privs',
    ])
    assert.notEqual(code, 0)
    assert.match(said, /CAP_NET_ADMIN/)
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('a broken certificate is named', async () => {
    const folder = mesh.catalog.certificateFolder('a')
    const config = {
      ...a.config(),
      certificates: { kind: 'files' as const, directory: `${folder}-broken` },
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

  await t.test('nor is one with a socket and ports of its own let at the rules', async () => {
    const rules = await a.namespace.rules()
    const folder = join(mesh.folder, 'second')
    await mkdir(folder)
    const config = a.config()
    const path = join(folder, 'hostmesh.yaml')
    const own = {
      ...config,
      admin: { socket: join(folder, 'admin.sock') },
      tunnel: { ...config.tunnel, port: TUNNEL_PORT + 1 },
      state: { directory: join(folder, 'state') },
      dns: { mode: 'off' },
    }
    await writeFile(path, stringify(own), { mode: 0o600 })
    const second = await a.daemon.command('run', '--config', path)
    assert.equal(second.code, 1)
    assert.match(second.stderr, new RegExp(`another daemon, process ${a.daemon.pid}, keeps the`))
    assert.match(second.stderr, /hint: One daemon a host: end that one first/)
    assert.equal(await a.namespace.rules(), rules)
    assert.equal((await a.daemon.status()).ready, true)
    assert.doesNotMatch(a.daemon.log, /changed by another program/)
  })

  await t.test('after a kill a start at once finds the rules free', async () => {
    await a.daemon.kill()
    await a.daemon.start()
    assert.doesNotMatch(a.daemon.log, /no daemon has the name|is no daemon/)
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
    const { ready, problems } = await a.daemon.status()
    assert.equal(ready, true)
    assert.deepEqual(
      problems.map(({ code }) => code),
      ['HM_CONFIG_INVALID'],
    )
    assert.equal((await a.daemon.cli('status')).code, 1)
  })
})

async function failToStart(
  host: Host,
  prefix: readonly string[] = [],
): Promise<{ code: number | null; said: string }> {
  const { daemon } = host
  const from = daemon.log.length
  await daemon.launch(prefix)
  try {
    const { code } = await within(10_000, 'The end of a daemon that cannot start', daemon.exited)
    return { code, said: daemon.log.slice(from) }
  } catch (error) {
    await daemon.kill()
    throw new Error(`It does not end; it said: ${daemon.log.slice(from)}`, { cause: error })
  }
}
