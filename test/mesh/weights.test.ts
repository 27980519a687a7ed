/**
 * Weights dose traffic: an instance gets the share of new connections that its weight says, one after another and many
 * at a time, through real daemons.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

const DB = 15_000

/** Calls of one round: 30 of them are the light one's, at weights 10 and 1. */
const CALLS = 330

/** One percent of them. */
const MAY_DIFFER = 3

test('of weights 10 and 1 the light instance gets one connection of eleven', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'file',
    capture: 'off',
  })
  const web = await mesh
    .host('a')
    .service('web', { upstreams: { db: DB } })
    .start()
  await mesh.host('b').service('db', { id: 'db-heavy', listens: 5_432 }).start()
  await mesh.host('c').service('db', { id: 'db-light', listens: 5_432 }).start()
  await mesh.catalog.amend('b', 'db-heavy', { Weight: 10 })
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.callPort(DB))

  for (const atOnce of [1, 16])
    await t.test(`${atOnce} at a time`, async () => {
      let left = CALLS
      let light = 0
      const caller = async (): Promise<void> => {
        while (left > 0) {
          left -= 1
          if ((await web.callPort(DB)).instance === 'db-light') light += 1
        }
      }
      await Promise.all(Array.from({ length: atOnce }, caller))
      assert.ok(Math.abs(light - CALLS / 11) <= MAY_DIFFER, `${light} of ${CALLS}`)
    })
})
