/**
 * State files that are damaged cost what they held and nothing else: the daemon starts, says so, keeps the
 * broken file for a look, and serves when Consul has answered; with Consul gone, it waits and denies. A folder
 * that cannot be used is a problem to be seen, not a refusal to start.
 */
import assert from 'node:assert/strict'
import { chmod, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'

test('damaged state at a start', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'consul' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const folder = a.daemon.stateFolder
  const names = ['catalog', 'certificates', 'virtual-addresses']

  /** One kind of damage each. */
  async function damage(): Promise<void> {
    const [catalog, certificates, addresses] = names.map((name) => join(folder, `${name}.json`))
    await truncate(catalog ?? '', 200)
    const bytes = await readFile(certificates ?? '')
    bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 4
    await writeFile(certificates ?? '', bytes)
    const text = await readFile(addresses ?? '', 'utf8')
    await writeFile(addresses ?? '', text.replace('"version":1', '"version":99'))
  }

  await t.test(
    'with Consul there, the daemon gets ready and serves as if there were none',
    async () => {
      await a.daemon.stop()
      await damage()
      await a.daemon.start()
      await mesh.settled()
      await eventually(() => web.call('db'))
      for (const name of names) {
        assert.ok((await readdir(folder)).includes(`${name}.json.broken`), name)
        assert.match(a.daemon.log, new RegExp(`${name}\\.json".*rejected`))
      }
      assert.doesNotMatch(a.daemon.log, /PRIVATE KEY/)
      assert.deepEqual((await a.daemon.status()).state.problems, [])
      // And everything is written again.
      await eventually(async () => {
        const files = await readdir(folder)
        for (const name of names) assert.ok(files.includes(`${name}.json`), name)
      })
    },
  )

  await t.test('a folder that cannot be used is a problem in status and metric', async () => {
    await a.daemon.stop()
    await chmod(folder, 0o777)
    await a.daemon.start()
    await mesh.settled()
    await eventually(() => web.call('db'))
    const { problems } = (await a.daemon.status()).state
    assert.match(problems.join(), /others may write to it; run: chmod 0700/)
    assert.equal(await a.daemon.metric('hostmesh_state_problems'), 1)
    assert.equal((await a.daemon.cli('status')).code, 1)
    await chmod(folder, 0o700)
  })

  await t.test(
    'a folder that goes away while the daemon runs is a problem, until it is back',
    async () => {
      await b.daemon.status()
      await rm(b.daemon.stateFolder, { recursive: true })
      await writeFile(b.daemon.stateFolder, 'in the way')
      await mesh.deny('web', 'cache')
      await mesh.deny('cache', 'db')
      await eventually(
        async () =>
          assert.match((await b.daemon.status()).state.problems.join(), /Cannot write .*catalog/),
        { withinMs: 20_000 },
      )
      await eventually(() => web.call('db'))
      assert.ok((await b.daemon.metric('hostmesh_state_problems')) >= 1)
    },
  )

  await t.test('with Consul gone, what is damaged is not guessed at', async () => {
    await a.daemon.stop()
    await damage()
    for (const name of ['a', 'b']) await mesh.catalog.agent(name).kill()
    await mesh.catalog.server.kill()
    await a.daemon.launch()
    await eventually(
      async () => assert.ok((await a.daemon.status()).awaited.includes('the list of services')),
      { withinMs: 20_000 },
    )
    await assert.rejects(web.call('db'))
    assert.equal((await a.daemon.status()).ready, false)
  })
})
