/** What is written for `hostmesh explain --snapshot`: where it cannot be, and where something else than a file is. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  closeSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { writeFacts } from '../../src/daemon/facts-file.ts'

test('a snapshot that cannot be written is one sentence with a next step', () => {
  assert.throws(() => writeFacts('/nowhere/at/all.json', {}), {
    code: 'HM_SNAPSHOT_WRITE_FAILED',
    message: 'Cannot write /nowhere/at/all.json: ENOENT',
    hint: /folder that exists/,
  })
})

test('a pipe is written to and stays one; a link stays one, and what it leads to is replaced', () => {
  const folder = mkdtempSync(join(tmpdir(), 'hmt-facts-'))
  try {
    const pipe = join(folder, 'pipe')
    execFileSync('mkfifo', [pipe])
    const reader = openSync(pipe, 'r+')
    writeFacts(pipe, {})
    assert.ok(lstatSync(pipe).isFIFO())
    const read = Buffer.alloc(16)
    assert.equal(read.toString('utf8', 0, readSync(reader, read)), '{}\n')
    closeSync(reader)

    const file = join(folder, 'file.json')
    const link = join(folder, 'link')
    writeFileSync(file, 'old', { mode: 0o644 })
    symlinkSync(file, link)
    writeFacts(link, {})
    assert.ok(lstatSync(link).isSymbolicLink())
    assert.equal(readFileSync(file, 'utf8'), '{}\n')
    assert.equal(lstatSync(file).mode & 0o777, 0o600)
  } finally {
    rmSync(folder, { recursive: true })
  }
})
