/**
 * A protocol in which the server speaks first: nothing on the way waits for the caller's first byte, at a virtual address,
 * at an instance's, and at an explicit upstream port.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

/** As text: the users of services may not be allowed to read the checkout. */
const mail = readFileSync(join(import.meta.dirname, '../harness/services/mail.py'), 'utf8')
const python = ['/usr/bin/python3', '-c', mail]

const MAIL_PORT = 2_525
const UPSTREAM = 9_025

test('SMTP: the greeting comes unasked, and the mail arrives', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = a.service('web', { upstreams: { mail: UPSTREAM } })
  const server = await b
    .service('mail', { listens: MAIL_PORT })
    .run([...python, 'serve', String(MAIL_PORT)])
  await eventually(() => assert.match(server.output, /listening/))
  await mesh.allow('web', 'mail')
  await mesh.up()
  const { ip, port } = await mesh.virtualAddress('mail', a)
  const { ip: ip6 } = await mesh.virtualAddress('mail', a, 6)
  for (const [address, at] of [
    [ip, port],
    [ip6, port],
    [b.namespace.ip, MAIL_PORT],
    ['127.0.0.1', UPSTREAM],
  ] as const) {
    const sent = await web.exec([...python, 'send', address, String(at)])
    assert.equal(sent.stdout, 'mail speaks first\ntook 100000 bytes\n', address + sent.stderr)
  }
})
