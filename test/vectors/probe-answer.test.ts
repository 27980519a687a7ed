/**
 * What a daemon answers to a probe: docs/tunnel-protocol.md, "Probe".
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import * as fc from 'fast-check'
import {
  encodeProbeAnswer,
  MAX_ANSWER_BYTES,
  type ProbeAnswer,
  readProbeAnswer,
} from '../../src/dataplane/tunnel/probe-answer.ts'

const vectors = JSON.parse(
  readFileSync(new URL('./tunnel/probe-answers.json', import.meta.url), 'utf8'),
) as {
  readonly answers: readonly {
    readonly name: string
    readonly hex: string
    readonly answer: ProbeAnswer
  }[]
  readonly refused: readonly { readonly name: string; readonly hex: string }[]
}

function bytesOf({ hex }: { readonly hex: string }): Buffer {
  return Buffer.from(hex.replaceAll(' ', ''), 'hex')
}

for (const vector of vectors.answers)
  test(`${vector.name}: is written as its bytes and read as its meaning`, () => {
    assert.equal(encodeProbeAnswer(vector.answer).toString('hex'), bytesOf(vector).toString('hex'))
    assert.deepEqual(readProbeAnswer(bytesOf(vector)), vector.answer)
  })

for (const vector of vectors.refused)
  test(`${vector.name}: is no answer`, () => {
    assert.equal(readProbeAnswer(bytesOf(vector)), undefined)
  })

test('a reason that is too long is cut between characters', () => {
  const bytes = encodeProbeAnswer({
    verdict: 'unreachable',
    application: 'unknown',
    reason: `${'x'.repeat(249)}ä and more`,
  })
  assert.ok(bytes.length <= MAX_ANSWER_BYTES)
  assert.equal(readProbeAnswer(bytes)?.reason, 'x'.repeat(249))
})

test('any bytes are read or refused, and what is read is written alike', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      const answer = readProbeAnswer(bytes)
      if (answer === undefined) return
      assert.deepEqual(readProbeAnswer(encodeProbeAnswer(answer)), answer)
    }),
  )
})
