/**
 * The schedule of renewals as a pure function: whatever the clock does, nothing is renewed too early, nothing is
 * forgotten, and hosts do not act all at once.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { jitterOf, type RenewalFacts, renewalOf } from '../../src/controlplane/identity/renewal.ts'

const HOUR_MS = 3_600_000

const serial = fc.stringMatching(/^[0-9A-F]{32}$/)
const facts: fc.Arbitrary<RenewalFacts> = fc
  .record({
    notBeforeMs: fc.integer({ min: 0, max: 4e12 }),
    lifeMs: fc.integer({ min: 1_000, max: 400 * 24 * HOUR_MS }),
    serialNumber: serial,
  })
  .map(({ notBeforeMs, lifeMs, serialNumber }) => ({
    notBeforeMs,
    notAfterMs: notBeforeMs + lifeMs,
    serialNumber,
  }))

/** A moment as a share of the certificate's life. */
function at(certificate: RenewalFacts, share: number): number {
  const { notBeforeMs, notAfterMs } = certificate
  return notBeforeMs + (notAfterMs - notBeforeMs) * share
}

test('nothing is due before half of its life, and everything is after 60 %', () => {
  fc.assert(
    fc.property(facts, fc.double({ min: 0, max: 0.499, noNaN: true }), (certificate, share) => {
      assert.equal(renewalOf(certificate, at(certificate, share)).state, 'fresh')
    }),
  )
  fc.assert(
    fc.property(facts, fc.double({ min: 0.601, max: 0.799, noNaN: true }), (certificate, share) => {
      assert.equal(renewalOf(certificate, at(certificate, share)).state, 'due')
    }),
  )
})

test('the alarm is at 80 % and the end is the end', () => {
  fc.assert(
    fc.property(facts, (certificate) => {
      assert.equal(renewalOf(certificate, at(certificate, 0.801)).state, 'overdue')
      assert.equal(renewalOf(certificate, certificate.notAfterMs - 1).state, 'overdue')
      assert.equal(renewalOf(certificate, certificate.notAfterMs).state, 'expired')
    }),
  )
})

test('the state depends on the wall clock alone, so a clock that is stepped and put right leaves no trace', () => {
  fc.assert(
    fc.property(
      facts,
      fc.double({ min: 0, max: 2, noNaN: true }),
      fc.double({ min: -2, max: 2, noNaN: true }),
      (certificate, share, elsewhere) => {
        const before = renewalOf(certificate, at(certificate, share))
        renewalOf(certificate, at(certificate, elsewhere))
        assert.deepEqual(renewalOf(certificate, at(certificate, share)), before)
      },
    ),
  )
})

test('a certificate from the future is waited for, not asked for again', () => {
  fc.assert(
    fc.property(facts, fc.integer({ min: 1, max: 10 * HOUR_MS }), (certificate, earlyMs) => {
      fc.pre(certificate.notBeforeMs >= earlyMs)
      const { state, dueAtMs } = renewalOf(certificate, certificate.notBeforeMs - earlyMs)
      assert.equal(state, 'notYetValid')
      assert.equal(dueAtMs, certificate.notBeforeMs)
    }),
  )
})

test('a new root is followed within the time the CA gives, and within a tenth of a short life', () => {
  fc.assert(
    fc.property(facts, fc.integer({ min: 0, max: HOUR_MS }), (certificate, withinMs) => {
      const sinceMs = at(certificate, 0.1)
      const changed = { ...certificate, rootChange: { sinceMs, withinMs } }
      const { dueAtMs } = renewalOf(changed, sinceMs)
      assert.ok(dueAtMs >= sinceMs && dueAtMs <= sinceMs + withinMs)
      assert.ok(dueAtMs <= at(certificate, 0.2001))
    }),
  )
})

test('a revoked certificate is due at once', () => {
  const certificate = { notBeforeMs: 0, notAfterMs: HOUR_MS, serialNumber: 'FFFFFFFF' }
  assert.equal(renewalOf(certificate, 1_000).state, 'fresh')
  assert.equal(renewalOf({ ...certificate, isRefused: true }, 1_000).state, 'due')
})

test('jitter is spread evenly over serial numbers, and stable for one', () => {
  const buckets = [0, 0, 0, 0]
  for (let i = 0; i < 4_000; i += 1) {
    const jitter = jitterOf(
      crypto.randomUUID().replaceAll('-', '').slice(0, 24) + hex(i * 1_073_741),
    )
    assert.ok(jitter >= 0 && jitter < 1)
    buckets[Math.floor(jitter * 4)]! += 1
  }
  for (const count of buckets) assert.ok(count > 800 && count < 1_200, buckets.join())
  assert.equal(jitterOf('00'), 0)
  assert.equal(jitterOf('80'), 0.5)
})

function hex(value: number): string {
  return (value >>> 0).toString(16).padStart(8, '0')
}
