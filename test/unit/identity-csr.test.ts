/**
 * Signing requests: ours are read by OpenSSL, OpenSSL's by us, and nothing but a proven P-256 key gets through.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createPrivateKey, createPublicKey } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { makeSigningRequest, readSigningRequest } from '../../src/controlplane/identity/csr.ts'

/** A request made by the openssl command. */
function byOpenssl(
  key: readonly string[],
  subject = '/CN=x',
  more: readonly string[] = [],
): string {
  const folder = mkdtempSync(join(tmpdir(), 'hostmesh-csr-'))
  try {
    const openssl = (...args: string[]): Buffer =>
      execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] })
    openssl('genpkey', ...key, '-out', join(folder, 'key'))
    openssl(
      'req',
      '-new',
      '-key',
      join(folder, 'key'),
      '-subj',
      subject,
      ...more,
      '-out',
      join(folder, 'csr'),
    )
    return readFileSync(join(folder, 'csr'), 'utf8')
  } finally {
    rmSync(folder, { recursive: true })
  }
}

const P256 = ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256']

test('openssl verifies a request of ours, and its key is the one that stays here', () => {
  const { csrPem, privateKeyPem } = makeSigningRequest()
  const folder = mkdtempSync(join(tmpdir(), 'hostmesh-csr-'))
  try {
    writeFileSync(join(folder, 'csr'), csrPem)
    execFileSync('openssl', ['req', '-in', join(folder, 'csr'), '-verify', '-noout'], {
      stdio: 'pipe',
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
  const mine = createPublicKey(createPrivateKey(privateKeyPem))
  assert.ok(readSigningRequest(csrPem).equals(mine))
})

test('a request of openssl is read, whoever it would like to be', () => {
  const csr = byOpenssl(P256, '/CN=root/O=mesh', [
    '-addext',
    'subjectAltName=URI:spiffe://mesh.test/ns/default/dc/dc1/svc/db',
    '-addext',
    'basicConstraints=critical,CA:TRUE',
  ])
  assert.equal(readSigningRequest(csr).asymmetricKeyDetails?.namedCurve, 'prime256v1')
})

describe('refused is a key that', () => {
  const keys: Record<string, readonly string[]> = {
    'is a small RSA key': ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:1024'],
    'is a large RSA key': ['-algorithm', 'RSA', '-pkeyopt', 'rsa_keygen_bits:3072'],
    'lies on P-224': ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-224'],
    'lies on P-384': ['-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-384'],
    'is an Ed25519 key': ['-algorithm', 'ED25519'],
    'spells out its curve': [...P256, '-pkeyopt', 'ec_param_enc:explicit'],
  }
  for (const [name, key] of Object.entries(keys))
    test(name, () => {
      assert.throws(() => readSigningRequest(byOpenssl(key)), { code: 'HM_CA_KEY_REFUSED' })
    })
})

test('a request that was signed by another key is refused', () => {
  const [victim, thief] = [makeSigningRequest(), makeSigningRequest()].map(({ csrPem }) =>
    der(csrPem),
  )
  assert.ok(victim !== undefined && thief !== undefined)
  // The key of the one, the signature of the other: same lengths but for that of the signature.
  const infoEnd = 3 + 2 + (victim[4] ?? 0)
  const body = Buffer.concat([victim.subarray(3, infoEnd), thief.subarray(infoEnd)])
  const forged = Buffer.concat([Buffer.from([0x30, 0x81, body.length]), body])
  assert.throws(() => readSigningRequest(pem(forged)), { code: 'HM_CA_CSR_INVALID' })
})

test('a request with any byte changed is refused or asks for the same key', () => {
  const { csrPem } = makeSigningRequest()
  const bytes = der(csrPem)
  const key = readSigningRequest(csrPem)
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, change) => {
      const spoiled = Buffer.from(bytes)
      spoiled[at] = (spoiled[at] ?? 0) ^ change
      try {
        assert.ok(readSigningRequest(pem(spoiled)).equals(key))
      } catch (thrown) {
        assert.match(
          String(Reflect.get(thrown as object, 'code')),
          /^HM_CA_(CSR_INVALID|KEY_REFUSED)$/,
        )
      }
    }),
    { numRuns: 2_000 },
  )
})

test('garbage is refused with one of our errors', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
      assert.throws(() => readSigningRequest(pem(Buffer.from(bytes))), /signing request|this key/)
    }),
  )
  for (const text of ['', 'x'.repeat(9_000), '-----BEGIN CERTIFICATE REQUEST-----'])
    assert.throws(() => readSigningRequest(text), { code: 'HM_CA_CSR_INVALID' })
})

function der(csrPem: string): Buffer {
  return Buffer.from(csrPem.replaceAll(/-----[^-]+-----|\s/g, ''), 'base64')
}

function pem(bytes: Buffer): string {
  return `-----BEGIN CERTIFICATE REQUEST-----\n${bytes.toString('base64')}\n-----END CERTIFICATE REQUEST-----\n`
}
