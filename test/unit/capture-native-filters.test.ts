/** Claims about src/controlplane/capture/native-filters.ts: which chains of other programs drop what capture diverts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  findBlockingChains,
  markedWords,
  redirectedWords,
} from '../../src/controlplane/capture/native-filters.ts'

const words = markedWords(0x1000)

/** A table as nft lists it, of chains with their lines. */
function table(name: string, chains: Readonly<Record<string, readonly string[]>>): string {
  const listed = Object.entries(chains).map(
    ([chain, lines]) => `\tchain ${chain} {\n${lines.map((line) => `\t\t${line}\n`).join('')}\t}\n`,
  )
  return `table ${name} {\n${listed.join('\n')}}\n`
}

const OUTPUT = 'type filter hook output priority filter + 10; policy accept;'
const INPUT = 'type filter hook input priority filter; policy drop;'

/** firewalld's own, with a policy that drops what the host sends. */
function firewalld(...first: readonly string[]): string {
  return table('inet firewalld', {
    filter_OUTPUT: [
      OUTPUT,
      ...first,
      'ct state { established, related } accept',
      'oifname "lo" accept',
      'jump filter_OUTPUT_POLICIES_pre',
    ],
    filter_OUTPUT_POLICIES_pre: ['jump filter_OUT_policy_outgoing'],
    filter_OUT_policy_outgoing: ['jump filter_OUT_policy_outgoing_allow', 'drop'],
    filter_OUT_policy_outgoing_allow: ['tcp dport 15443 accept'],
  })
}

const blocked = (ruleset: string, by = words): readonly (string | undefined)[] =>
  findBlockingChains(ruleset, by).map(({ subject }) => subject)

test('a chain that drops only in a chain that it jumps to drops all the same', () => {
  assert.deepEqual(blocked(firewalld()), ['inet firewalld filter_OUTPUT'])
  assert.deepEqual(blocked(firewalld(), redirectedWords), ['inet firewalld filter_OUTPUT'])
})

test('what lets pass is known by the words of each backend', () => {
  const marked = 'meta mark & 0x00001000 == 0x00001000 accept comment "hostmesh"'
  const redirected = 'ct status dnat fib daddr type local accept comment "hostmesh"'
  assert.deepEqual(blocked(firewalld(marked)), [])
  assert.deepEqual(blocked(firewalld(redirected), redirectedWords), [])
  assert.equal(blocked(firewalld(redirected)).length, 1)
  assert.equal(blocked(firewalld(marked), redirectedWords).length, 1)
})

test('it seems to leave by its old device: a jump for one is followed, but not one for loopback', () => {
  const of = (jump: string): string =>
    table('inet fw', { out: [OUTPUT, jump], closed: ['counter drop'] })
  assert.deepEqual(blocked(of('oifname "eth0" jump closed')), ['inet fw out'])
  assert.deepEqual(blocked(of('oifname { "eth0", "eth1" } goto closed')), ['inet fw out'])
  assert.deepEqual(blocked(of('oifname "lo" jump closed')), [])
  assert.deepEqual(blocked(of('ip daddr 192.0.2.1 jump closed')), [])
})

test('on the input hook it is loopback that must pass, also in a chain that is jumped to', () => {
  assert.deepEqual(blocked(table('inet fw', { in: [INPUT] })), ['inet fw in'])
  assert.deepEqual(
    blocked(table('inet fw', { in: [INPUT, 'jump common'], common: ['iifname "lo" accept'] })),
    [],
  )
})

test('chains that jump in a circle end, and those of iptables are not meant', () => {
  const circle = table('inet fw', { out: [OUTPUT, 'jump x'], x: ['jump y'], y: ['jump x', 'drop'] })
  assert.deepEqual(blocked(circle), ['inet fw out'])
  assert.deepEqual(blocked(table('ip filter', { OUTPUT: [OUTPUT, 'counter drop'] })), [])
})
