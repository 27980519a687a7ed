/**
 * The manual pages: one for each command, with its options, examples and exit codes, and no text that roff would obey.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Command } from 'commander'
import { manualPages } from '../../scripts/manual-pages.ts'
import { buildProgram } from '../../src/cli/program.ts'

test('every command has a page with its sections in the order of man-pages(7)', async () => {
  const program = await buildProgram()
  const pages = new Map(manualPages(program).map(({ name, text }) => [name, text]))
  const names: string[] = []
  const walk = (command: Command, words: readonly string[]): void => {
    names.push(words.join('-'))
    for (const child of command.commands) walk(child, [...words, child.name()])
  }
  walk(program, ['hostmesh'])
  assert.deepEqual([...pages.keys()], names)
  const edges = pages.get('hostmesh-edges') ?? ''
  assert.deepEqual(
    [...edges.matchAll(/^\.SH (.+)$/gm)].map(([, title]) => title),
    ['NAME', 'SYNOPSIS', 'OPTIONS', 'EXAMPLES', 'EXIT STATUS', 'SEE ALSO'],
  )
  assert.match(edges, /^\.B hostmesh edges$/m)
  assert.match(edges, /^\.B \\-o, \\-\\-output <format>\nOutput format\. One of table, wide/m)
  assert.match(pages.get('hostmesh-ca') ?? '', /^\.BR hostmesh\\-ca\\-token \(1\)$/m)
})

test('text of the tree is text of the page: neither a request nor an escape', () => {
  const program = new Command('x')
    .description(".br 'tis a \\fBtrap")
    .option('--a', '.so /etc/passwd')
  const [page] = manualPages(program)
  assert.ok(page !== undefined)
  const lines = page.text.split('\n')
  assert.ok(
    lines.every((line) => !/^['.](?!(TH|SH|TP|B|BR|I) |TP$)/.test(line)),
    page.text,
  )
  assert.ok(page.text.includes('\\&.so /etc/passwd.'))
  assert.ok(page.text.includes('\\efBtrap'))
})
