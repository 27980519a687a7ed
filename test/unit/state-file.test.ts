/**
 * Claims about src/lib/state-file.ts, with real files: a file is accepted whole or not at all, and nothing
 * that is wrong with it or its folder is an error for the daemon.
 */
import assert from 'node:assert/strict'
import {
  chmodSync,
  chownSync,
  existsSync,
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
import { afterEach, beforeEach, describe, test } from 'node:test'
import * as fc from 'fast-check'
import { type Log, silentLog } from '../../src/lib/log.ts'
import {
  openStateFile,
  prepareStateDirectory,
  type StateFile,
  type StateFileOptions,
} from '../../src/lib/state-file.ts'
import { eventually } from '../harness/eventually.ts'

const BODY = { names: ['web', 'db'], address: '240.0.0.1', when: 1_700_000_000_000 }

describe('a state file', () => {
  let folder: string
  let path: string
  let warnings: string[]

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'hostmesh-state-'))
    path = join(folder, 'thing.json')
    warnings = []
  })

  afterEach(() => {
    rmSync(folder, { recursive: true, force: true })
  })

  const log: Log = {
    ...silentLog,
    warn: (message, fields) => warnings.push(`${message} ${JSON.stringify(fields)}`),
  }

  function open(options: Partial<StateFileOptions> = {}): StateFile {
    return openStateFile({ path, format: 'test', version: 3, maxBytes: 4_096, log, ...options })
  }

  async function write(
    body: unknown = BODY,
    options: Partial<StateFileOptions> = {},
  ): Promise<void> {
    await using file = open(options)
    file.save(() => JSON.stringify(body))
  }

  function assertSetAside(reason: RegExp, options: Partial<StateFileOptions> = {}): void {
    const file = open(options)
    assert.equal(file.stored, undefined)
    assert.deepEqual(readdirSync(folder), ['thing.json.broken'])
    assert.equal(warnings.length, 1)
    assert.match(warnings[0] ?? '', reason)
  }

  test('gives back what was written, with its time, and is readable by nobody else', async () => {
    const beforeMs = Date.now()
    await write()
    const { stored } = open()
    assert.deepEqual(stored?.body, BODY)
    assert.ok((stored?.writtenAtMs ?? 0) >= beforeMs && (stored?.writtenAtMs ?? 0) <= Date.now())
    assert.equal(statSync(path).mode & 0o7777, 0o600)
    assert.deepEqual(readdirSync(folder), ['thing.json'])
    assert.deepEqual(warnings, [])
  })

  test('that is not there holds nothing, and that is no problem', () => {
    const file = open()
    assert.equal(file.stored, undefined)
    assert.equal(file.problem(), undefined)
    assert.deepEqual(warnings, [])
  })

  test('with any one bit turned, or cut off anywhere, is absent and never partly accepted', async () => {
    await write()
    const whole = readFileSync(path)
    const damage = fc.oneof(
      fc.nat(whole.length * 8 - 1).map((bit) => {
        const bytes = Buffer.from(whole)
        bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7))
        return bytes
      }),
      fc.nat(whole.length - 1).map((length) => whole.subarray(0, length)),
      fc.uint8Array({ minLength: 1, maxLength: 20 }).map((more) => Buffer.concat([whole, more])),
      fc.uint8Array({ maxLength: 600 }).map((bytes) => Buffer.from(bytes)),
    )
    fc.assert(
      fc.property(damage, (bytes) => {
        writeFileSync(path, bytes, { mode: 0o600 })
        assert.equal(open().stored, undefined)
        assert.ok(!existsSync(path) && existsSync(`${path}.broken`))
      }),
      { numRuns: 3_000 },
    )
  })

  test('of another version is set aside', async () => {
    await write(BODY, { version: 2 })
    assertSetAside(/not of version 3/)
  })

  test('of another content is set aside', async () => {
    await write(BODY, { format: 'other' })
    assertSetAside(/does not say that it is test/)
  })

  test('that is too large is set aside', async () => {
    await write('x'.repeat(4_000))
    assertSetAside(/larger than/, { maxBytes: 1_000 })
  })

  for (const mode of [0o620, 0o602, 0o666])
    test(`that others may write (${mode.toString(8)}) is set aside`, async () => {
      await write()
      chmodSync(path, mode)
      assertSetAside(/others may write/)
    })

  test('that belongs to another user is set aside', async () => {
    await write()
    chownSync(path, 65_534, 65_534)
    assertSetAside(/belongs to user 65534/)
  })

  test('that is a link is set aside, and what it leads to is left alone', async () => {
    const elsewhere = join(folder, 'elsewhere')
    writeFileSync(elsewhere, 'mine')
    symlinkSync(elsewhere, path)
    assert.equal(open().stored, undefined)
    assert.deepEqual(readdirSync(folder), ['elsewhere', 'thing.json.broken'])
    await write()
    assert.equal(readFileSync(elsewhere, 'utf8'), 'mine')
  })

  test('that is a folder is set aside', () => {
    mkdirSync(path)
    assertSetAside(/not a regular file/)
  })

  test('whose reader cannot use its body is set aside', async () => {
    await write()
    const file = open()
    file.reject('no shape')
    assert.equal(file.stored, undefined)
    assert.deepEqual(readdirSync(folder), ['thing.json.broken'])
  })

  test('one broken file is kept, the last', () => {
    for (const text of ['first', 'second']) {
      writeFileSync(path, text, { mode: 0o600 })
      open()
    }
    assert.deepEqual(readdirSync(folder), ['thing.json.broken'])
    assert.equal(readFileSync(`${path}.broken`, 'utf8'), 'second')
  })

  test('is written once for many changes, and the last one is what it holds', async () => {
    let renders = 0
    {
      await using file = open()
      for (let i = 0; i <= 1_000; i += 1)
        file.save(() => {
          renders += 1
          return JSON.stringify(i)
        })
      await eventually(() => assert.ok(existsSync(path)))
      for (let i = 1_001; i <= 2_000; i += 1)
        file.save(() => {
          renders += 1
          return JSON.stringify(i)
        })
    }
    assert.equal(renders, 2)
    assert.equal(open().stored?.body, 2_000)
  })

  test('a write that was cut off by a crash leaves the old content', async () => {
    await write()
    writeFileSync(`${path}.tmp`, '{"format":"te', { mode: 0o600 })
    assert.deepEqual(open().stored?.body, BODY)
    await write({ next: true })
    assert.deepEqual(open().stored?.body, { next: true })
    assert.deepEqual(readdirSync(folder), ['thing.json'])
  })

  test('what a killed process had begun to write is removed by the next one that owns the file', () => {
    const unfinished = `${path}.tmp`
    writeFileSync(unfinished, '{"format":"te', { mode: 0o600 })
    const file = open()
    file.hold(true)
    assert.equal(existsSync(unfinished), true, 'another process may be at it')
    file.hold(false)
    assert.equal(existsSync(unfinished), false)
  })

  test('a body over the limit is a problem, and the last one stays', async () => {
    await write()
    await using file = open()
    file.save(() => JSON.stringify('x'.repeat(5_000)))
    await eventually(() => assert.match(file.problem() ?? '', /the limit is 4096/))
    assert.deepEqual(open().stored?.body, BODY)
    assert.equal(warnings.length, 1)
  })

  test('a folder that goes away is a problem, not an exception', async () => {
    const file = open()
    rmSync(folder, { recursive: true })
    file.save(() => '1')
    await eventually(() => assert.match(file.problem() ?? '', /Cannot write .*ENOENT/))
    await file[Symbol.asyncDispose]()
  })

  test('a failed write leaves no half file behind', async () => {
    // A folder in the place of the file: the rename fails, whoever asks.
    const file = open()
    mkdirSync(join(path, 'full'), { recursive: true })
    file.save(() => '"secret"')
    await file[Symbol.asyncDispose]()
    assert.deepEqual(readdirSync(folder), ['thing.json'])
    assert.match(file.problem() ?? '', /Cannot write/)
  })

  test('a folder of state is made for nobody else, and one that others may write is refused', () => {
    const made = join(folder, 'made')
    assert.equal(prepareStateDirectory(made), undefined)
    assert.equal(statSync(made).mode & 0o7777, 0o700)
    assert.equal(prepareStateDirectory(made), undefined)
    chmodSync(made, 0o777)
    assert.match(prepareStateDirectory(made) ?? '', /others may write to it; run: chmod 0700/)
    writeFileSync(path, '')
    assert.match(prepareStateDirectory(path) ?? '', /not a directory/)
    assert.match(prepareStateDirectory(join(folder, 'a/b')) ?? '', /Cannot make .*ENOENT/)
  })
})
