/**
 * The file of the access log: from the workers to the disk, renamed when it is full, moved by somebody else, written by
 * two processes, and on a disk without room.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { AccessLogFile } from '../../src/daemon/access-log-file.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually } from '../harness/eventually.ts'
import { dial, startEcho } from './dataplane-fixtures.ts'
import { startPair } from './dataplane-pair.ts'

function scene(t: { after: (undo: () => void) => void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'hostmesh-access-log-'))
  t.after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

function numbersIn(path: string): number[] {
  const text = readFileSync(path, 'utf8')
  assert.ok(text === '' || text.endsWith('\n'), 'no line is divided')
  return text
    .split('\n')
    .slice(0, -1)
    .map((each) => (JSON.parse(each) as { n: number }).n)
}

/** A line of 100 bytes. */
function line(n: number): string {
  return `${JSON.stringify({ n, pad: '' }).replace('""', () => `"${'x'.repeat(80 - String(n).length)}"`)}\n`
}

test('a full file is renamed, as many are kept as configured, and no line is lost between them', async (t) => {
  const folder = scene(t)
  const path = join(folder, 'access.log')
  const before = process.umask(0o077)
  t.after(() => process.umask(before))
  {
    await using file = new AccessLogFile({ path, maxBytes: 1_000, keep: 2, log: silentLog })
    for (let n = 0; n < 25; n += 1) void file.write(line(n), 1)
  }
  const perFile = Math.floor(1_000 / line(0).length)
  const names = readdirSync(folder).toSorted()
  assert.deepEqual(names, ['access.log', 'access.log.1', 'access.log.2'])
  const all = ['access.log.2', 'access.log.1', 'access.log'].flatMap((name) => {
    assert.equal(statSync(join(folder, name)).mode & 0o777, 0o640)
    assert.ok(statSync(join(folder, name)).size <= 1_000)
    return numbersIn(join(folder, name))
  })
  const lost = 25 - all.length
  assert.ok(lost < perFile, String(lost))
  assert.deepEqual(
    all,
    Array.from({ length: all.length }, (_, i) => i + lost),
  )
})

test('keep: 0 removes a full file', async (t) => {
  const folder = scene(t)
  const path = join(folder, 'access.log')
  await using file = new AccessLogFile({ path, maxBytes: 250, keep: 0, log: silentLog })
  for (let n = 0; n < 5; n += 1) await file.write(line(n), 1)
  assert.deepEqual(readdirSync(folder), ['access.log'])
  assert.deepEqual(numbersIn(path), [4])
})

test('a file that somebody renames or removes is made again, without a signal', async (t) => {
  const path = join(scene(t), 'access.log')
  await using file = new AccessLogFile({ path, maxBytes: 1e6, keep: 1, log: silentLog })
  await file.write(line(1), 1)
  renameSync(path, `${path}.moved`)
  await file.write(line(2), 1)
  assert.deepEqual([numbersIn(`${path}.moved`), numbersIn(path)], [[1], [2]])
  rmSync(path)
  await file.write(line(3), 1)
  assert.deepEqual(numbersIn(path), [3])
})

test('after a reload both processes append, and only the newer one renames', async (t) => {
  const folder = scene(t)
  const path = join(folder, 'access.log')
  const options = { path, maxBytes: 400, keep: 9, log: silentLog }
  await using old = new AccessLogFile(options)
  await old.write(line(0), 1)
  await using next = new AccessLogFile(options)
  old.handOver()
  for (let n = 1; n < 12; n += 1) await (n % 2 === 0 ? old : next).write(line(n), 1)
  const numbers = readdirSync(folder).flatMap((name) => numbersIn(join(folder, name)))
  assert.deepEqual(
    numbers.toSorted((left, right) => left - right),
    Array.from({ length: 12 }, (_, n) => n),
  )
  assert.equal(old.lost + next.lost, 0)
})

test('a link, a folder and a missing folder are a problem, and nothing is written elsewhere', async (t) => {
  const folder = scene(t)
  const target = join(folder, 'target')
  writeFileSync(target, 'kept')
  symlinkSync(target, join(folder, 'link'))
  for (const path of [join(folder, 'link'), folder, join(folder, 'missing', 'access.log')]) {
    await using file = new AccessLogFile({ path, maxBytes: 1e6, keep: 1, log: silentLog })
    await file.write(line(1), 1)
    assert.equal(file.lost, 1)
    assert.equal(file.problems()[0]?.code, 'HM_ACCESS_LOG_FAILED')
  }
  assert.equal(readFileSync(target, 'utf8'), 'kept')
})

test('a full disk loses whole lines, counts and reports them, and room makes all well again', async (t) => {
  const folder = scene(t)
  const disk = join(folder, 'disk')
  mkdirSync(disk)
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=128k', 'hostmesh-test', disk])
  using _mounted = { [Symbol.dispose]: () => execFileSync('umount', ['-l', disk]) }
  const path = join(disk, 'access.log')
  const said: string[] = []
  const log = {
    ...silentLog,
    error: (message: string) => said.push(message),
    warn: (message: string, fields?: Record<string, unknown>) =>
      said.push(`${message} ${JSON.stringify(fields)}`),
  }
  await using file = new AccessLogFile({ path, maxBytes: 1e6, keep: 1, log })
  const ballast = join(disk, 'ballast')
  const { bavail, bsize } = statfsSync(disk)
  writeFileSync(ballast, Buffer.alloc((bavail - 3) * bsize))
  const batches = 20
  for (let batch = 0; batch < batches; batch += 1)
    await file.write(Array.from({ length: 10 }, (_, i) => line(batch * 10 + i)).join(''), 10)
  const kept = numbersIn(path)
  assert.ok(kept.length > 0 && kept.length < batches * 10, String(kept.length))
  assert.equal(kept.length + file.lost, batches * 10)
  assert.match(file.problems()[0]?.message ?? '', /cannot be written \(.*ENOSPC.*\); \d+ lines/)
  assert.equal(said.length, 1, 'once, not for each line')
  rmSync(ballast)
  await file.write(line(999), 1)
  assert.equal(numbersIn(path).at(-1), 999)
  assert.deepEqual(file.problems(), [])
  assert.match(said[1] ?? '', /written again .*"linesLost":\d+/)
})

test('workers send their lines to the main thread; a drain sends the last ones', async (t) => {
  const path = join(scene(t), 'access.log')
  const file = new AccessLogFile({ path, maxBytes: 1e6, keep: 1, log: silentLog })
  const accessLog = {
    include: 'all',
    sample: 1,
    linesPerSecond: 1_000,
    format: 'json',
    to: 'mainThread',
  } as const
  {
    await using undo = new AsyncDisposableStack()
    undo.use(file)
    const options = {
      accessLog,
      writeAccessLines: (text: string, lines: number) => file.write(text, lines),
    }
    const { port } = await startPair(undo, await startEcho(), { web: options, db: options })
    for (let i = 0; i < 5; i += 1) {
      const socket = await dial(port)
      socket.end('hello')
      socket.resume()
      await new Promise((resolve) => socket.once('close', resolve))
    }
    await eventually(() => assert.ok(readFileSync(path, 'utf8').split('\n').length >= 3))
  }
  const lines = readFileSync(path, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((text) => JSON.parse(text) as Record<string, unknown>)
  const ids = (direction: string) =>
    lines
      .filter((one) => one['direction'] === direction)
      .map((one) => String(one['trace_id']))
      .toSorted()
  assert.equal(lines.length, 10)
  assert.deepEqual(ids('outbound'), ids('inbound'))
  assert.equal(new Set(ids('outbound')).size, 5)
  for (const one of lines) {
    assert.equal(one['response_flags'], '-')
    assert.equal(one['bytes_received'], 5)
    assert.equal(one['transport'], 'tunnel')
    assert.equal(typeof one['connect_duration'], 'number')
  }
})
