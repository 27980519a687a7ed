/**
 * One daemon writes the rules of a network namespace; who could not write any keeps nobody from it.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { test } from 'node:test'
import { holderOf, holdKernelRules, mayWriteRules } from '../../src/daemon/kernel-lock.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { silentLog } from '../../src/lib/log.ts'

const NOBODY = 65_534

function nameOf(what: string): string {
  return `\0hmt-lock-${process.pid}-${what}`
}

/** Another process that listens at an abstract name, as this user or another one. */
async function otherHolder(name: string, uid?: number): Promise<ChildProcess> {
  const script = `require('node:net').createServer((s)=>s.destroy()).listen('\\0'+process.argv[1],()=>console.log('up'))`
  const child = spawn(process.execPath, ['-e', script, name.slice(1)], {
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(uid !== undefined && { uid, gid: uid }),
    cwd: '/',
  })
  await once(child.stdout, 'data')
  return child
}

test('a second holder is refused by name, and the lock is free when the first lets go', async () => {
  const name = nameOf('own')
  const first = await holdKernelRules(silentLog, { name })
  assert.ok(first !== undefined)
  await assert.rejects(holdKernelRules(silentLog, { name, timeoutMs: 100 }), (error) => {
    assert.equal(errorCode(error), 'HM_CAPTURE_HELD')
    assert.match(String(error), new RegExp(`process ${process.pid}, `))
    return true
  })
  const later = holdKernelRules(silentLog, { name })
  await first[Symbol.asyncDispose]()
  const second = await later
  assert.ok(second !== undefined, 'who lets go meanwhile is waited for')
  await second[Symbol.asyncDispose]()
  assert.equal(await holderOf(name), undefined)
})

test('after a kill the lock is free', async () => {
  const name = nameOf('killed')
  const child = await otherHolder(name)
  assert.deepEqual(await holderOf(name), { pid: child.pid, uid: process.geteuid?.() })
  await assert.rejects(holdKernelRules(silentLog, { name, timeoutMs: 0 }))
  child.kill('SIGKILL')
  await using held = await holdKernelRules(silentLog, { name })
  assert.ok(held !== undefined)
})

test('a local user who takes the name keeps no daemon from starting', async () => {
  const name = nameOf('stranger')
  const child = await otherHolder(name, NOBODY)
  const warnings: string[] = []
  const log = { ...silentLog, warn: (message: string) => warnings.push(message) }
  try {
    const holder = await holderOf(name)
    assert.equal(holder?.uid, NOBODY)
    assert.equal(mayWriteRules(holder), false)
    assert.equal(await holdKernelRules(log, { name, timeoutMs: 0 }), undefined)
    assert.match(warnings.join(), /is no daemon/)
  } finally {
    child.kill('SIGKILL')
  }
})
