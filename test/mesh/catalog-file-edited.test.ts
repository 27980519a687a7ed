/**
 * An edit of the catalog file, meant or not, costs no secret and no host: where an instance listened that the file does
 * not list any more, connections are refused, while the daemon runs, is stopped, killed and started again; and a start
 * with a file that is broken goes on with the last good one.
 */
import assert from 'node:assert/strict'
import { rename, writeFile } from 'node:fs/promises'
import { test } from 'node:test'

import { eventually, within } from '../harness/eventually.ts'
import type { FileCatalog } from '../harness/file-catalog.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { echo } from '../harness/service.ts'
import { keepConnecting, type SteadyConnections } from '../harness/steady-calls.ts'

async function write({ catalog: { path } }: Mesh<FileCatalog>, text: string): Promise<void> {
  await writeFile(`${path}.edited`, text)
  await rename(`${path}.edited`, path)
}

/** Waits until connections that began from now on have this outcome, 20 in a row. */
async function allBecome(calls: SteadyConnections, outcome: string): Promise<void> {
  const sinceMs = Date.now()
  await eventually(
    () => {
      const last = calls
        .calls()
        .filter(({ atMs }) => atMs >= sinceMs)
        .slice(-20)
      assert.deepEqual(
        last.map((call) => call.outcome),
        Array.from({ length: 20 }, () => outcome),
      )
    },
    { withinMs: 20_000 },
  )
}

for (const backend of ['nftables', 'iptables'] as const)
  test(`by ${backend}: what an edit takes from the file is refused, over stop, start and kill`, async (t) => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    a.configure({ capture: { mode: 'on', backend } })
    const web = await a.service('web').start()
    const db = await b.service('db', { listens: 5432 }).start(echo)
    await mesh.allow('web', 'db')
    await mesh.up()
    await using calls = await keepConnecting(web.service, {
      targets: [`${b.namespace.ip}:5432`],
      patienceMs: 5_000,
    })
    await using leaks = await watchForPlaintext(a.namespace, calls.canary)
    await allBecome(calls, 'served')
    const edits = {
      'the port is changed': () => mesh.catalog.amend('b', db.service.id, { ServicePort: 5433 }),
      'the port is left out': () =>
        write(mesh, `services: [{Name: db, Instances: [{Node: b, Address: ${b.namespace.ip}}]}]\n`),
      'no service is left': () => write(mesh, 'services: []\n'),
    }
    for (const [name, edit] of Object.entries(edits)) {
      // What differs between backends is not what the file says.
      if (backend === 'iptables' && name !== 'no service is left') continue
      await t.test(name, async () => {
        await edit()
        await allBecome(calls, 'reset')
        await a.daemon.stop()
        await allBecome(calls, 'refused')
        await a.daemon.start()
        await allBecome(calls, 'reset')
        await a.daemon.kill()
        await a.daemon.start()
        await allBecome(calls, 'reset')
        await leaks.assertNone()
        await mesh.catalog.amend('b', db.service.id, { ServicePort: 5432 })
        await allBecome(calls, 'served')
        await leaks.assertNone()
      })
    }
    await t.test('while no daemon runs', async () => {
      await a.daemon.stop()
      await write(mesh, 'services: []\n')
      await a.daemon.start()
      await allBecome(calls, 'reset')
      await leaks.assertNone()
    })
    await t.test('together with a reload', async () => {
      await mesh.catalog.amend('b', db.service.id, { ServicePort: 5432 })
      await allBecome(calls, 'served')
      await write(mesh, 'services: []\n')
      const { code, stdout, stderr } = await a.daemon.cli('reload')
      assert.equal(code, 0, stdout + stderr)
      const { pid } = await a.daemon.status()
      try {
        await allBecome(calls, 'reset')
        await leaks.assertNone()
      } finally {
        process.kill(pid)
        await within(10_000, 'the end of the one that was replaced', a.daemon.exited)
      }
    })
  })

test('a daemon that starts with a broken file goes on with the last good one', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))

  await t.test('it serves, and says where the file is broken and what to do', async () => {
    for (const host of [a, b]) await host.daemon.stop()
    await write(mesh, 'services: [\n')
    for (const host of [a, b]) await host.daemon.start()
    await eventually(() => web.call('db'))
    const { ready, problems } = await a.daemon.status()
    assert.equal(ready, true)
    assert.deepEqual(
      problems.map(({ code }) => code),
      ['HM_CATALOG_FILE_BROKEN'],
    )
    assert.match(problems[0]?.message ?? '', /catalog\.yaml:\d+:\d+: /)
    assert.match(problems[0]?.hint ?? '', /Correct the file/)
    assert.equal((await a.daemon.cli('status')).code, 1)
  })

  await t.test('a reload and the check of a configuration are as strict as ever', async () => {
    const { pid } = await a.daemon.status()
    assert.notEqual((await a.daemon.cli('reload')).code, 0)
    assert.equal((await a.daemon.status()).pid, pid)
    const { stdout, stderr } = await a.daemon.command('config', 'validate', a.daemon.configPath)
    assert.match(stdout + stderr, /catalog\.yaml:\d+:\d+: /)
    await eventually(() => web.call('db'))
  })

  await t.test('without anything kept it does not start, as before', async () => {
    await a.daemon.stop()
    await a.daemon.forget()
    await a.daemon.launch()
    const { code } = await within(20_000, 'The end of the daemon', a.daemon.exited)
    assert.notEqual(code, 0)
    assert.match(a.daemon.log, /HM_CATALOG_INVALID|cannot be used:/)
  })

  await t.test('mended, all is well', async () => {
    await mesh.allow('web', 'db')
    await a.daemon.start()
    await eventually(() => web.call('db'))
    await eventually(async () => assert.deepEqual((await b.daemon.status()).problems, []))
  })
})
