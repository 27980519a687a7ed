/** What is written for `hostmesh explain --snapshot`, where it cannot be. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { writeFacts } from '../../src/daemon/facts-file.ts'

test('a snapshot that cannot be written is one sentence with a next step', () => {
  assert.throws(() => writeFacts('/nowhere/at/all.json', {}), {
    code: 'HM_SNAPSHOT_WRITE_FAILED',
    message: 'Cannot write /nowhere/at/all.json: ENOENT',
    hint: /folder that exists/,
  })
})
