/**
 * The one way to native code, and the undocumented fields of Node: what is there, and what is said where it is not.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { copyFileSync, mkdtempSync, readlinkSync, rmSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'
import * as native from '../../src/lib/native.ts'
import { canReadDirectly, descriptorOf } from '../../src/lib/node-internals.ts'

test('a system call that fails says why by the name of the system', () => {
  const calls = native.nativeCalls()
  assert.ok(calls !== undefined)
  assert.ok(calls.socket(999, native.SOCK_STREAM, 0) < 0)
  const error = native.systemError(calls, 'socket')
  assert.match(error.message, /^socket: .* \(EAFNOSUPPORT\)$/)
  assert.equal(Reflect.get(error, 'code'), 'EAFNOSUPPORT')
})

test('a host on which koffi does not load gets an error that says what to do', async () => {
  const alone = mkdtempSync(join(tmpdir(), 'hostmesh-native-'))
  try {
    for (const name of ['native.ts', 'errors.ts'])
      copyFileSync(join(import.meta.dirname, '../../src/lib', name), join(alone, name))
    const module: typeof native = await import(pathToFileURL(join(alone, 'native.ts')).href)
    assert.equal(module.nativeCalls(), undefined)
    assert.throws(() => module.requireNativeCalls('locks files', ', or do not lock'), {
      code: 'HM_FFI_UNAVAILABLE',
      message: /^Cannot load koffi, which locks files/,
      hint: 'Reinstall with optional dependencies (npm ci), or do not lock',
    })
  } finally {
    rmSync(alone, { recursive: true })
  }
})

test('this runtime has the fields that reading into memory of our own needs', () => {
  assert.equal(canReadDirectly, true)
})

test('the descriptor of a socket is known as long as it is open', async () => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  assert.match(readlinkSync(`/proc/self/fd/${descriptorOf(server)}`), /^socket:/)
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1')
  const [accepted] = (await once(server, 'connection')) as [Socket]
  assert.match(readlinkSync(`/proc/self/fd/${descriptorOf(accepted)}`), /^socket:/)
  accepted.destroy()
  await once(accepted, 'close')
  assert.equal(descriptorOf(accepted), -1)
  client.destroy()
  server.close()
})
