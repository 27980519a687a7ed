/**
 * `hostmesh policy lint`: every code with its page, example and fix, and no finding in rules that are right.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { lint } from '../../src/daemon/policy/lint.ts'
import { lintTitles } from '../../src/daemon/policy/lint-rules.ts'

const page = readFileSync(new URL('../../docs/policy-lint.md', import.meta.url), 'utf8')

function codesOf(...texts: readonly string[]): string[] {
  return lint(texts.map((text, index) => ({ name: `${index}.yaml`, text }))).map(({ code }) => code)
}

test('each code has a section with its title, an example that causes it alone, and a fix', () => {
  const sections = page.split(/^## /m).slice(1)
  assert.deepEqual(
    sections.map((section) => section.split('\n', 1)[0]),
    Object.entries(lintTitles).map(([code, title]) => `${code}: ${title}`),
  )
  for (const section of sections) {
    const code = section.slice(0, 6)
    const example = /```yaml\n([\s\S]+?)\n```\n\nFix: .+/.exec(section)?.[1]
    assert.ok(example !== undefined, `${code} has no example or no fix`)
    assert.deepEqual([...new Set(codesOf(example))], [code], `the example of ${code}`)
  }
})

test('rules that are right have no finding', () => {
  const good = `
- Kind: service-intentions
  Name: db
  Sources: [{Name: web, Action: allow}, {Name: '*', Action: deny}]
- Kind: service-intentions
  Name: '*'
  Sources: [{Name: '*', Action: deny}, {Name: web, Action: allow}]
- {Kind: proxy-defaults, Name: global, Config: {protocol: http}}
- {Kind: service-splitter, Name: api, Splits: [{Weight: 33.3}, {Weight: 66.7, ServiceSubset: v-1}]}
- {Kind: service-router, Name: api, Routes: []}
- Kind: service-resolver
  Name: api
  Redirect: {Service: api, Datacenter: dc2}
  Subsets: {v-1: {Filter: Service.Meta.v == 1}}
  Failover: {'*': {Datacenters: [dc2]}}
`
  assert.deepEqual(codesOf(good), [])
  const catalog =
    'services: []\nintentions:\n  - {SourceName: web, DestinationName: db, Action: allow}\n'
  assert.deepEqual(codesOf(catalog), [])
})

test('files are judged together, and all forms of an entry alike', () => {
  const rule = '{Kind: service-intentions, Name: db, Sources: [{Name: web, Action: allow}]}'
  assert.deepEqual(codesOf(rule), [])
  assert.deepEqual(codesOf(rule, rule), ['HM1003'])
  const kubernetes =
    'kind: ServiceIntentions\nspec: {destination: {name: db}, sources: [{name: web, action: permit}]}\n'
  assert.deepEqual(codesOf(kubernetes), ['HM1001'])
  const listed = '[{"SourceName": "web*", "DestinationName": "db", "Action": "allow"}]'
  assert.deepEqual(codesOf(listed), ['HM1006'])
  const splitter = `kind: ServiceSplitter\nmetadata: {name: api}\nspec: {splits: [{weight: 60}]}\n`
  assert.deepEqual(codesOf(splitter), ['HM2002'])
})

test('no text makes it throw', () => {
  for (const text of [
    '',
    '{',
    'a: b: c',
    '[1, null, "x"]',
    '{Kind: 3}',
    '- - -',
    'Kind: service-resolver',
  ])
    assert.ok(Array.isArray(codesOf(text)))
})
