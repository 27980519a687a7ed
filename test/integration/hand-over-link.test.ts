/** What a reload starts, where that is no daemon: it is ended whatever it does. */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { startSuccessor } from '../../src/daemon/hand-over-link.ts'
import { eventually } from '../harness/eventually.ts'

test('a program that hangs before it has said anything, and does not hear SIGTERM, is killed', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'hmt-successor-'))
  try {
    const file = join(folder, 'pid')
    const hanging = 'trap "" TERM; echo $$ >"$1"; exec sleep 60'
    const successor = startSuccessor({
      command: ['sh', '-c', hanging, 'sh', file],
      sockets: new Map(),
      environment: {},
      hello: { kind: 'hello', awaited: [], reloads: 1 },
    })
    const pid = await eventually(() => {
      const text = readFileSync(file, 'utf8')
      assert.match(text, /\n$/)
      return Number(text)
    })
    await successor.end()
    await eventually(() => assert.ok(!isRunning(pid), `process ${pid} goes on`))
  } finally {
    rmSync(folder, { recursive: true })
  }
})

test('a program that is ended is told that the hand-over is cancelled, whatever it makes of the signal', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'hmt-successor-'))
  try {
    const file = join(folder, 'heard')
    const reading = 'trap "" TERM; while read -r line <&3; do echo "$line"; done >"$1"'
    const successor = startSuccessor({
      command: ['sh', '-c', reading, 'sh', file],
      sockets: new Map(),
      environment: {},
      hello: { kind: 'hello', awaited: [], reloads: 1 },
    })
    await eventually(() => assert.match(readFileSync(file, 'utf8'), /"hello"/))
    await successor.end()
    assert.match(readFileSync(file, 'utf8'), /"hello".*\n\{"kind":"cancelled"\}\n$/)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

function isRunning(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return false
  }
}
