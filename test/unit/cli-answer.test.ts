/**
 * Documents as text: the same document comes back, and no text in it steers a terminal.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parse } from 'yaml'
import { formatAnswer } from '../../src/cli/answer.ts'

test('json and yaml hold the same document, and no character that steers a terminal', async () => {
  const rows = [{ name: 'web' }]
  const documents = [
    { rows, again: rows, none: null, count: 1.5, text: 'no', empty: [] },
    { 'key\u202E': 'a\u001B[2J\u0085b\u202E', lines: 'one\ntwo', tag: 'x\u{E0001}y', quote: '"' },
  ]
  for (const document of documents)
    for (const format of ['json', 'yaml'] as const) {
      const text = await formatAnswer({ document, text: () => '' }, format, 80)
      // oxlint-disable-next-line no-control-regex -- control characters are what this looks for
      assert.doesNotMatch(text, /[\u0000-\u0009\u000B-\u001F\u007F-\u009F\p{Cf}]/u)
      assert.deepEqual(format === 'json' ? JSON.parse(text) : parse(text), document)
    }
})
