/**
 * Claims about src/lib/atomic-file.ts, with real files: a reader finds the old content or the new, with the mode that was
 * asked for, and a write that fails leaves nothing.
 */
import assert from 'node:assert/strict'
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { replaceFile, writeFileAtomically, writeNamedFile } from '../../src/lib/atomic-file.ts'

const folder = mkdtempSync(join(tmpdir(), 'hostmesh-atomic-'))
after(() => rmSync(folder, { recursive: true }))

test('a file has the mode that was asked for, whatever the umask is and whatever it had before', () => {
  const path = join(folder, 'mode')
  const umask = process.umask(0o077)
  try {
    writeFileAtomically(path, 'a', { mode: 0o644, existing: 'fail' })
    assert.equal(statSync(path).mode & 0o777, 0o644)
    writeFileAtomically(path, 'b', { mode: 0o600, existing: 'replace' })
    assert.equal(statSync(path).mode & 0o777, 0o600)
  } finally {
    process.umask(umask)
  }
})

test('a file that is there is left alone on request', () => {
  const path = join(folder, 'there')
  writeFileSync(path, 'first')
  assert.throws(() => writeFileAtomically(path, 'second', { mode: 0o600, existing: 'fail' }), {
    code: 'EEXIST',
  })
  assert.equal(readFileSync(path, 'utf8'), 'first')
})

test('a write that fails leaves nothing beside the file', async () => {
  const inside = join(folder, 'fails')
  const path = join(inside, 'a-folder')
  mkdirSync(join(path, 'full'), { recursive: true })
  assert.throws(() => writeFileAtomically(path, 'text', { mode: 0o600, existing: 'replace' }))
  await assert.rejects(replaceFile(path, [Buffer.from('text')]))
  assert.deepEqual(readdirSync(inside), ['a-folder'])
})

test('a file that a person has named is written where its link leads, and a device stays one', () => {
  const path = join(folder, 'named')
  const link = join(folder, 'link')
  writeFileSync(path, 'old')
  symlinkSync(path, link)
  writeNamedFile(link, 'new', 0o600)
  assert.equal(readFileSync(path, 'utf8'), 'new')
  assert.ok(lstatSync(link).isSymbolicLink())
  writeNamedFile('/dev/null', 'text', 0o600)
  assert.ok(statSync('/dev/null').isCharacterDevice())
})
