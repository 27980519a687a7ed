/**
 * What check-docs.ts relies on: error codes found with their sentences, links and anchors as GitHub has them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { findErrorCodes, renderErrorTable } from '../../scripts/error-codes.ts'
import { anchorsIn, linksIn } from '../../scripts/markdown.ts'

function find(text: string): ReturnType<typeof findErrorCodes> {
  return findErrorCodes([{ path: 'src/a.ts', text }])
}

test('a code is found with its message, placeholders shortened, and its hint', () => {
  const [found] = find(`
    throw new MeshError(
      'HM_A_B',
      \`Cannot read \${paths.map((p) => \`<\${p}>\`).join(', ')}: it's gone\`,
      { cause: error, hint: 'Check the path, then ' + 'try again' },
    )`)
  assert.deepEqual(found, {
    code: 'HM_A_B',
    messages: ["Cannot read …: it's gone"],
    hints: ['Check the path, then try again'],
    files: ['src/a.ts'],
  })
})

test('several messages and files of one code are gathered, each once', () => {
  const codes = findErrorCodes([
    { path: 'src/b.ts', text: `fail('HM_X_Y', 'two'); fail('HM_X_Y', 'one')` },
    { path: 'src/a.ts', text: `type T = 'HM_X_Y' | 'HM_X_Z'; fail('HM_X_Y', 'one')` },
  ])
  assert.deepEqual(
    codes.map(({ code, messages, files }) => ({ code, messages, files })),
    [
      { code: 'HM_X_Y', messages: ['one', 'two'], files: ['src/a.ts', 'src/b.ts'] },
      { code: 'HM_X_Z', messages: [], files: ['src/a.ts'] },
    ],
  )
})

test('a message that is computed elsewhere leaves the code listed bare', () => {
  assert.deepEqual(find(`new MeshError('HM_A_B', sentence)`)[0]?.messages, [])
  assert.deepEqual(find(`new MeshError('HM_A_B', 'x: ' + why(a, 'b'))`)[0]?.messages, ['x: …'])
})

test('text that is not closed ends the search instead of hanging it', () => {
  assert.deepEqual(find(`new MeshError('HM_A_B', \`open \${ 'x`).length, 1)
})

test('cells of the table cannot break it', () => {
  const table = renderErrorTable(find(`fail('HM_A_B', 'either | or <b>\\n twice')`))
  assert.match(table, /^\| `HM_A_B` \| either \\\| or \\<b> twice \| – \| `src\/a\.ts` \|$/m)
})

test('links are found in text, pictures, references and HTML, not in code', () => {
  const text = `[a](one.md#x) ![b](two.svg "title") and \`[c](not.md)\`
[ref]: three.md
<img src="four.svg">
\`\`\`
[d](not-either.md)
\`\`\`
[e](<five.md>) [f](six_(7).md)`
  assert.deepEqual(
    linksIn(text).map((link) => link.target),
    ['one.md#x', 'two.svg', 'three.md', 'four.svg', 'five.md', 'six_(7).md'],
  )
})

test('anchors are spelled as GitHub spells them, repeated headings numbered', () => {
  const text = `# The \`hostmesh/1\` tunnel: limits & codes
## Limits
\`\`\`sh
# not a heading
\`\`\`
## Limits ##
## A [link](x.md), too
<a id="by-hand"></a>`
  assert.deepEqual(
    [...anchorsIn(text)],
    ['the-hostmesh1-tunnel-limits--codes', 'limits', 'limits-1', 'a-link-too', 'by-hand'],
  )
})
