/**
 * A socket that is bound to a device does not follow the mark to loopback: it is refused or served, never let out.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { canary } from '../harness/wire-capture.ts'

const DB_PORT = 5_432

/** Becomes the service, binds to eth0, dials, says the canary; prints what came of it. */
const DIAL = `
import os, socket, sys
uid, ip, port, text = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
os.setgroups([]); os.setgid(uid); os.setuid(uid)
s = socket.socket(socket.AF_INET6 if ':' in ip else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
s.settimeout(4)
try:
    s.connect((ip, port))
    s.sendall(text.encode() + b'-1\\n')
    print('answered' if s.recv(1000) else 'cut')
except OSError as error:
    print(type(error).__name__)
`

test('a socket that is bound to a device lets nothing out in plaintext', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const text = canary()
  await using watch = await watchForPlaintext(a.namespace, text)
  const targets = [
    (await mesh.virtualAddress('db', a, 4)).ip,
    (await mesh.virtualAddress('db', a, 6)).ip,
    b.namespace.ip,
  ]
  for (const ip of targets) {
    const words = [
      '/usr/bin/python3',
      '-c',
      DIAL,
      String(web.service.uid),
      ip,
      String(DB_PORT),
      text,
    ]
    const outcome = (await a.namespace.run(...words)).trim()
    t.diagnostic(`${ip}: ${outcome}`)
    assert.match(outcome, /^(TimeoutError|ConnectionRefusedError)$/, ip)
  }
  await watch.assertNone()
})
