/**
 * What OpenSSL's own client cannot get from the tunnel port: old versions, suites without forward secrecy or
 * AEAD, renegotiation, resumption, early data, compression.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'
import { within } from '../harness/eventually.ts'
import {
  DATACENTER,
  leafOf,
  openTunnelPort,
  TRUST_DOMAIN,
  type TunnelPort,
} from '../integration/tunnel-fixtures.ts'

const folder = mkdtempSync(join(tmpdir(), 'hostmesh-weak-'))
after(() => rmSync(folder, { recursive: true, force: true }))
const leaf = leafOf('web')
writeFileSync(join(folder, 'web.pem'), leaf.certificatePem)
writeFileSync(join(folder, 'web.key'), leaf.privateKeyPem, { mode: 0o600 })

/** Runs `openssl s_client` with a mesh certificate; all it prints. `input` is typed, then it is ended. */
async function speak(port: TunnelPort, args: readonly string[], input = 'Q\n'): Promise<string> {
  const child = spawn('openssl', [
    's_client',
    '-connect',
    `127.0.0.1:${port.port}`,
    '-servername',
    `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
    '-cert',
    join(folder, 'web.pem'),
    '-key',
    join(folder, 'web.key'),
    ...args,
  ])
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (chunk: Buffer) => {
      output += chunk.toString('latin1')
    })
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  await within(15_000, 'the end of openssl', new Promise((resolve) => child.once('close', resolve)))
  return output
}

/** The suite that was agreed on; undefined when the handshake failed. */
function suiteIn(output: string): string | undefined {
  const suite = /^New, .*Cipher is (\S+)$/m.exec(output)?.[1]
  return suite === '(NONE)' || suite === undefined ? undefined : suite
}

/** How long the ticket is that the server gave, by the dump of its bytes; 0 without one. */
function ticketBytes(output: string): number {
  const dump = /TLS session ticket:\n((?: +[0-9a-f]{4} - .*\n)*)/.exec(output)?.[1] ?? ''
  const lines = [...dump.matchAll(/^ +[0-9a-f]{4} - ((?:[0-9a-f]{2}[ -])+)/gm)]
  return lines.reduce((sum, [, bytes = '']) => sum + bytes.split(/[ -]/).filter(Boolean).length, 0)
}

describe('OpenSSL gets from the tunnel port', () => {
  test('TLS 1.3, and TLS 1.2 with ECDHE and AEAD', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    assert.match(suiteIn(await speak(port, ['-tls1_3'])) ?? '', /^TLS_AES_128_GCM/)
    assert.match(suiteIn(await speak(port, ['-tls1_2'])) ?? '', /^ECDHE-ECDSA-AES128-GCM/)
  })

  for (const args of [
    ['-tls1', '-cipher', 'ALL:@SECLEVEL=0'],
    ['-tls1_1', '-cipher', 'ALL:@SECLEVEL=0'],
    ['-tls1_2', '-cipher', 'AES128-GCM-SHA256:AES256-GCM-SHA384'],
    ['-tls1_2', '-cipher', 'ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384'],
    ['-tls1_2', '-cipher', 'DHE-RSA-AES128-GCM-SHA256'],
    ['-tls1_2', '-cipher', 'aNULL:eNULL:@SECLEVEL=0'],
    ['-tls1_2', '-cipher', 'RC4:3DES:PSK:SRP:@SECLEVEL=0'],
  ])
    test(`nothing with ${args.join(' ')}`, async () => {
      await using port = await openTunnelPort(['db', 'cache'])
      const output = await speak(port, args)
      assert.equal(suiteIn(output), undefined, output)
      assert.equal(port.accepted.length, 0)
    })

  test('no renegotiation', async () => {
    await using port = await openTunnelPort(['db', 'cache'])
    const output = await speak(port, ['-tls1_2'], 'R\n')
    assert.ok(suiteIn(output) !== undefined, output)
    assert.match(output, /RENEGOTIATING[^]*(no renegotiation|error:)/)
  })

  for (const version of ['-tls1_2', '-tls1_3'])
    test(`no session to come back with, no early data, no compression (${version})`, async () => {
      await using port = await openTunnelPort(['db', 'cache'])
      const session = join(folder, `session${version}`)
      const output = await speak(port, [version, '-sess_out', session])
      assert.match(output, /Compression: NONE/)
      assert.doesNotMatch(output, /Max Early Data: [1-9]/)
      // What OpenSSL sends without tickets in TLS 1.3 is the number of a session that the server would have to keep; it is
      // seen if it comes before the client has left. With its state in it a ticket is longer.
      assert.ok(ticketBytes(output) <= 32, output)
      // Whatever was written: coming back with it changes nothing.
      const again = await speak(port, [version, '-sess_in', session])
      assert.doesNotMatch(again, /^Reused,/m)
    })
})
