/**
 * A disk that takes no line of the log ends no daemon and holds up no connection; the lines are counted.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { manual } from '../harness/service.ts'

/** Standard error on a device that answers every write with ENOSPC. */
const ON_FULL_DISK = ['sh', '-c', 'exec "$@" 2> /dev/full', 'sh']

for (const format of ['json', 'text'] as const)
  describe(`log.format: ${format}`, () => {
    test('a log that takes nothing', async (t) => {
      await using mesh = await startMesh({
        hosts: ['a', 'b'],
        catalog: 'file',
        config: { log: { level: 'debug', format } },
      })
      const web = await mesh.host('a').service('web').start()
      const db = await mesh.host('b').service('db', { listens: 5432 }).start(manual)
      await mesh.allow('web', 'db')
      await mesh.up(ON_FULL_DISK)
      const { daemon } = mesh.host('b')
      const lost = (): Promise<number> => daemon.metric('hostmesh_log_lines_lost_total')

      await t.test('loses lines, and counts them', async () => {
        const before = await lost()
        assert.ok(before > 0, 'lines of the start')
        // No handshake: it is refused, and that is logged.
        await mesh
          .host('a')
          .namespace.run(
            'bash',
            '-c',
            `echo x >/dev/tcp/${mesh.host('b').namespace.ip}/${TUNNEL_PORT}`,
          )
        await eventually(async () => assert.ok((await lost()) > before))
      })

      await t.test('holds up no connection, in any worker', async () => {
        const rounds = Array.from({ length: 20 }, async () => {
          const [caller, called] = await web.connectTo(db)
          await caller.write('hello')
          assert.equal(await called.read(5), 'hello')
          await caller.end()
          await called.end()
        })
        await Promise.all(rounds)
      })

      await t.test('crashes nothing', async () => {
        assert.equal(await daemon.metric('hostmesh_worker_restarts_total'), 0)
      })
    })
  })
