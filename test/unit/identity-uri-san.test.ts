/**
 * The reader of a certificate's URI against certificates made to fool it, against arbitrary bytes, and
 * against OpenSSL's reading of the same bytes.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import { errorCode } from '../../src/lib/errors.ts'
import { singleUriSan } from '../../src/lib/uri-san.ts'
import { forgeries, uri } from './forged-identities.ts'
import {
  altNames,
  craft,
  DNS,
  derOf,
  makeAuthority,
  makeLeaf,
  type Name,
  TRUST_DOMAIN,
  URI,
  WEB_ID,
} from './identity-fixtures.ts'

const authority = makeAuthority()
const goodDer = derOf(makeLeaf(authority).certificatePem)

test('the URI of an issued leaf is read as it was written', () => {
  assert.equal(singleUriSan(goodDer), WEB_ID)
  assert.equal(singleUriSan(authority.certificate.raw), `spiffe://${TRUST_DOMAIN}`)
})

test('other kinds of name beside the one URI do no harm', () => {
  const names: Name[] = [
    [DNS, 'web.example.com'],
    [URI, WEB_ID],
    [7, '\x7f\0\0\x01'],
  ]
  const { certificatePem } = craft(authority, { extensions: [altNames(...names)] })
  assert.equal(singleUriSan(derOf(certificatePem)), WEB_ID)
})

describe('a genuine signature does not make web of', () => {
  for (const [name, extensions] of Object.entries(forgeries))
    test(name, () => {
      const forged = craft(authority, { extensions, commonName: 'web' })
      assert.notEqual(singleUriSan(derOf(forged.certificatePem)), WEB_ID)
      assert.throws(
        () => readLeaf({ service: 'web', ...forged }, authority.bundle, Date.now()),
        (error) => ['HM_CERT_IDENTITY', 'HM_CERT_UNREADABLE'].includes(errorCode(error)),
      )
    })

  test('nothing, so that the cases above fail for their own reason', () => {
    const honest = craft(authority, { extensions: uri(WEB_ID), commonName: 'web' })
    assert.equal(
      readLeaf({ service: 'web', ...honest }, authority.bundle, Date.now()).spiffeId,
      WEB_ID,
    )
  })
})

describe('encodings that are not DER have no URI:', () => {
  /** The last occurrence of the SAN's value, replaced; lengths around it are not adjusted. */
  const patch = (from: Buffer, to: Buffer): Buffer => {
    const at = goodDer.indexOf(from)
    assert.ok(at > 0 && from.length === to.length)
    return Buffer.concat([goodDer.subarray(0, at), to, goodDer.subarray(at + from.length)])
  }
  const id = Buffer.from(WEB_ID)

  test('a constructed URI', () => {
    const from = Buffer.from([0x86, id.length])
    assert.equal(singleUriSan(patch(from, Buffer.from([0xa6, id.length]))), undefined)
  })

  test('an unknown kind of name', () => {
    const from = Buffer.from([0x86, id.length])
    assert.equal(singleUriSan(patch(from, Buffer.from([0x89, id.length]))), undefined)
  })

  test('a boolean that is neither true nor absent', () => {
    const from = Buffer.from([0x55, 0x1d, 0x11, 0x01, 0x01, 0xff])
    const to = Buffer.from([0x55, 0x1d, 0x11, 0x01, 0x01, 0x01])
    assert.equal(singleUriSan(patch(from, to)), undefined)
  })

  test('version 1', () => {
    const from = Buffer.from([0xa0, 0x03, 0x02, 0x01, 0x02])
    assert.equal(singleUriSan(patch(from, Buffer.from([0xa0, 0x03, 0x02, 0x01, 0x00]))), undefined)
  })

  test('an indefinite length', () => {
    const der = Buffer.from(goodDer)
    der[1] = 0x80
    assert.equal(singleUriSan(der), undefined)
  })

  test('a length in more bytes than it needs', () => {
    assert.equal(goodDer[1], 0x82)
    const length = goodDer.subarray(2, 4)
    const der = Buffer.concat([Buffer.from([0x30, 0x83, 0]), length, goodDer.subarray(4)])
    assert.equal(singleUriSan(der), undefined)
  })

  test('bytes after the certificate', () => {
    assert.equal(singleUriSan(Buffer.concat([goodDer, Buffer.from([0])])), undefined)
    assert.equal(singleUriSan(Buffer.concat([goodDer, goodDer])), undefined)
  })

  test('any truncation', () => {
    for (let length = 0; length < goodDer.length; length += 1)
      assert.equal(singleUriSan(goodDer.subarray(0, length)), undefined)
  })
})

describe('on arbitrary input', () => {
  test('names of every kind yield the URI if and only if there is exactly one good one', () => {
    const name: fc.Arbitrary<Name> = fc.oneof(
      fc.tuple(fc.constant(URI), fc.string({ unit: 'binary-ascii', maxLength: 20 })),
      fc.tuple(fc.constant(DNS), fc.stringMatching(/^[a-z0-9.-]{1,20}$/)),
      fc.tuple(fc.constant(7), fc.constant('\x0a\0\0\x01')),
    )
    fc.assert(
      fc.property(fc.array(name, { maxLength: 4 }), (names) => {
        const uris = names.filter(([tag]) => tag === URI).map(([, text]) => text)
        const [only = ''] = uris
        const expected = uris.length === 1 && /^[!-~]+$/.test(only) ? only : undefined
        const { certificatePem } = craft(authority, { extensions: [altNames(...names)] })
        assert.equal(singleUriSan(derOf(certificatePem)), expected)
      }),
      { seed: 20_260_101, numRuns: 300 },
    )
  })

  test('changed bytes never yield a URI that OpenSSL does not see as well', () => {
    const change = fc.tuple(fc.nat(goodDer.length - 1), fc.nat(255))
    let compared = 0
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 3 }), (changes) => {
        const der = Buffer.from(goodDer)
        for (const [at, byte] of changes) der[at] = byte
        const found = singleUriSan(der)
        if (found === undefined) return
        let seen: string | undefined
        try {
          seen = new X509Certificate(der).subjectAltName
        } catch {
          return
        }
        compared += 1
        // Node quotes what it finds odd, as JSON.
        const text = seen?.replace(/^URI:/, '') ?? ''
        assert.equal(text.startsWith('"') ? JSON.parse(text) : text, found)
      }),
      { seed: 20_260_102, numRuns: 5_000 },
    )
    assert.ok(compared > 1_000, `only ${compared} were compared`)
  })

  test('random bytes are refused without throwing', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 2_000 }), (bytes) => {
        assert.equal(singleUriSan(bytes), undefined)
      }),
      { seed: 20_260_103, numRuns: 2_000 },
    )
  })

  test('a mebibyte of nested or repeated elements costs less than 50 ms', () => {
    const inputs = [
      Buffer.alloc(1_048_576, 0x30),
      Buffer.alloc(65_536, 0x30),
      Buffer.concat([
        Buffer.from([0x30, 0x82, 0xff, 0xfc]),
        Buffer.alloc(65_532, Buffer.from([5, 0])),
      ]),
    ]
    for (const input of inputs) {
      const start = performance.now()
      assert.equal(singleUriSan(input), undefined)
      assert.ok(performance.now() - start < 50)
    }
  })
})
