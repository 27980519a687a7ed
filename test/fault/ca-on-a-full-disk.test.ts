/**
 * The disk of a CA fills up while it signs: nothing is handed out that is not recorded.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Issue, Journal } from '../../src/authority/journal.ts'

test('a certificate is recorded whole or refused while the disk is full, and room makes all well again', () => {
  const folder = mkdtempSync(join(tmpdir(), 'hostmesh-full-disk-'))
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'hostmesh-test', folder])
  try {
    const path = join(folder, 'journal.jsonl')
    const nowMs = Date.now()
    const given: string[] = []
    const give = (journal: Journal): void => {
      const serial = (given.length + 1_000_000).toString(16).toUpperCase()
      const issue: Issue = {
        serial,
        host: 'a',
        service: 'web',
        issuedAtMs: nowMs,
        notAfterMs: nowMs + 3_600_000,
        rootId: 'r',
      }
      journal.record(issue)
      given.push(serial)
    }
    {
      using journal = new Journal(path, nowMs)
      // All but a page: the line that does not fit is then cut in its midst, which is no error of write(2).
      const ballast = join(folder, 'ballast')
      writeFileSync(ballast, Buffer.alloc(44 * 1_024))
      const fill = (): void => {
        for (let i = 0; i < 1_000; i += 1) give(journal)
      }
      assert.throws(fill, { code: 'ENOSPC' })
      assert.throws(() => give(journal), { code: 'ENOSPC' }, 'and the next one')
      assert.ok(given.length > 10)
      assert.equal(journal.size, given.length)
      rmSync(ballast)
      give(journal)
    }
    const whole = readFileSync(path, 'utf8').split('\n').slice(0, -1)
    assert.deepEqual(
      whole.map((line) => (JSON.parse(line) as Issue).serial),
      given,
    )
    using again = new Journal(path, nowMs)
    assert.equal(again.size, given.length)
    assert.ok(statSync(path).size > 0)
  } finally {
    execFileSync('umount', [folder])
    rmdirSync(folder)
  }
})
