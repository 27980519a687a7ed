/**
 * A caller whose certificate the other hosts refuse gets nowhere, and that is no verdict on the instances: the
 * other callers of its host go on using all of them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endpoint, snapshotOf } from '../integration/dataplane-fixtures.ts'
import { revoking, startCertificatePair } from './certificate-pair.ts'

test('a caller whose certificate is refused has no instance ejected', async () => {
  await using pair = await startCertificatePair()
  const { tunnelPort } = pair.db
  const instances = ['db', 'db-2', 'db-3', 'db-4'].map((id) => endpoint('db', tunnelPort, { id }))
  await pair.web.publish(snapshotOf('db', instances))
  pair.db.pool.setRoots(revoking(pair.webLeaf.serialNumber))
  for (let i = 0; i < 8; i += 1) assert.equal(await pair.call(), 'ECONNRESET')
  assert.deepEqual((await pair.web.pool.views.ejections()).flat(), [])
})
