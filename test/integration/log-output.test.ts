/**
 * The log never makes the process wait and never ends it, whatever standard error is: a file on a full disk,
 * a pipe or socket whose reader has stopped or is gone. What is lost is counted and said.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  constants,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  unlinkSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import type { Lost } from '../harness/services/logger.ts'

const logger = join(import.meta.dirname, '../harness/services/logger.ts')
const folder = mkdtempSync(join(tmpdir(), 'hostmesh-log-'))
after(() => rmSync(folder, { recursive: true, force: true }))

/** Far more than a pipe, a socket and what is kept for a slow reader take together. */
const FLOOD = 6_000

/** Asks for lines in both threads. @throws when the process hangs or has ended. */
async function ask(child: ChildProcess, lines: number): Promise<Lost> {
  assert.equal(child.exitCode ?? child.signalCode, null, 'the process lives')
  child.send(lines)
  const ended = once(child, 'exit').then(() => {
    throw new Error('The process has ended')
  })
  const [lost] = (await within(
    20_000,
    'An answer of the logging process',
    Promise.race([once(child, 'message'), ended]),
  )) as [Lost]
  return lost
}

/** Ends it the ordinary way: what it keeps for a slow reader must not hold it up. */
async function end(child: ChildProcess): Promise<void> {
  const exit = once(child, 'exit')
  child.disconnect()
  assert.deepEqual(await within(5_000, 'The end of the logging process', exit), [0, null])
}

/** What the log says about its own gaps: the lines that it calls lost, summed up. */
function reportedLost(text: string): number {
  return text
    .split('\n')
    .filter((line) => line.includes('Log lines were lost'))
    .map((line) => Number(/\blines"?[=:](\d+)/.exec(line)?.[1]))
    .reduce((sum, lines) => sum + lines, 0)
}

function linesIn(text: string): number {
  return [...text.matchAll(/\bline \d+/g)].length
}

for (const format of ['json', 'text'] as const)
  describe(`format ${format}`, () => {
    test('a file on a full disk', async (t) => {
      const disk = join(folder, `disk-${format}`)
      const child = spawn(
        'unshare',
        [
          '--mount',
          'sh',
          '-c',
          'mkdir -p "$1" && mount -t tmpfs -o size=64k none "$1" && { head -c 100000 /dev/zero > "$1/filler" || true; } 2>/dev/null; shift; exec "$@" 2> "$0/log"',
          disk,
          disk,
          process.execPath,
          logger,
          format,
        ],
        { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] },
      )
      t.after(() => child.kill('SIGKILL'))
      const inside = (name: string): string => join(`/proc/${child.pid}/root`, disk, name)
      const lost = await ask(child, 50)
      assert.deepEqual(lost, { main: 50, worker: 50 })
      assert.equal(linesIn(readFileSync(inside('log'), 'utf8')), 0)

      unlinkSync(inside('filler'))
      const text = await eventually(() => {
        const now = readFileSync(inside('log'), 'utf8')
        assert.equal(reportedLost(now), 100, 'both threads say what they lost, without being asked')
        return now
      })
      if (format === 'json') for (const line of text.trim().split('\n')) JSON.parse(line)
      assert.deepEqual(await ask(child, 10), { main: 50, worker: 50 })
      assert.equal(linesIn(readFileSync(inside('log'), 'utf8')), 20)
      await end(child)
    })

    test('a pipe whose reader stops, reads on, and goes', async (t) => {
      const path = join(folder, `pipe-${format}`)
      execFileSync('mkfifo', [path])
      const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
      const writer = openSync(path, constants.O_WRONLY)
      const child = spawn(process.execPath, [logger, format], {
        stdio: ['ignore', 'inherit', writer, 'ipc'],
      })
      t.after(() => child.kill('SIGKILL'))
      closeSync(writer)
      const stopped = await ask(child, FLOOD)
      assert.ok(stopped.main > FLOOD / 2 && stopped.main < FLOOD, `main lost ${stopped.main}`)
      assert.ok(stopped.worker > FLOOD / 2 && stopped.worker < FLOOD)

      let text = ''
      await eventually(() => {
        text += drain(reader)
        assert.equal(reportedLost(text), stopped.main + stopped.worker)
      })
      assert.equal(linesIn(text), 2 * FLOOD - stopped.main - stopped.worker)
      if (format === 'json') for (const line of text.trim().split('\n')) JSON.parse(line)

      closeSync(reader)
      const gone = await ask(child, 50)
      assert.equal(gone.main, stopped.main + 50)
      assert.equal(gone.worker, stopped.worker + 50)
      await end(child)
    })

    test('a socket whose reader stops, as journald holds one', async (t) => {
      const child = spawn(process.execPath, [logger, format], {
        // Node gives a child sockets where it says "pipe".
        stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
      })
      t.after(() => child.kill('SIGKILL'))
      child.stderr?.pause()
      const lost = await ask(child, FLOOD)
      assert.ok(lost.main > 0 && lost.worker > 0)
      let text = ''
      child.stderr?.on('data', (chunk: Buffer) => (text += chunk.toString()))
      child.stderr?.resume()
      await eventually(() => assert.equal(reportedLost(text), lost.main + lost.worker))
      assert.equal(linesIn(text), 2 * FLOOD - lost.main - lost.worker)
      child.stderr?.destroy()
      const gone = await ask(child, 50)
      assert.deepEqual(gone, { main: lost.main + 50, worker: lost.worker + 50 })
      await end(child)
    })

    test('the end of the process does not wait for a reader that has stopped', async (t) => {
      const child = spawn(process.execPath, [logger, format], {
        stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
      })
      t.after(() => child.kill('SIGKILL'))
      child.stderr?.pause()
      await ask(child, FLOOD)
      await end(child)
    })
  })

/** Everything that can be read now. */
function drain(descriptor: number): string {
  const buffer = Buffer.alloc(1 << 20)
  let text = ''
  try {
    for (;;) {
      const length = readSync(descriptor, buffer)
      if (length === 0) return text
      text += buffer.toString('utf8', 0, length)
    }
  } catch {
    return text
  }
}
