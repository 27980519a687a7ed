/** Which rules of others are named because they write over the mark of capture, and which are not. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { marksInMangle, marksInRuleset } from '../../src/controlplane/capture/foreign-marks.ts'

const MARK = 0x1000

function inChain(type: string, ...rules: readonly string[]): number {
  const lines = [`type ${type}; policy accept;`, ...rules].map((line) => `\t\t${line}\n`).join('')
  return marksInRuleset(`table inet other {\n\tchain c {\n${lines}\t}\n}\n`, MARK).length
}

test('a plain value and the mark of the connection write over it', () => {
  const prerouting = 'filter hook prerouting priority mangle'
  assert.equal(inChain(prerouting, 'meta mark set ct mark'), 1)
  assert.equal(inChain(prerouting, 'tcp dport 80 meta mark set 0x00000001 accept'), 1)
  assert.equal(inChain('filter hook output priority filter', 'meta mark set 0x00000001'), 1)
  assert.equal(inChain(prerouting, 'meta mark set meta mark & 0xffff0000 | 0x00000001'), 1)
  assert.equal(inChain(prerouting, 'meta mark set meta mark | 0x00001000'), 1, 'it uses our bit')
})

test('a priority that is written over on loopback is named, too: it says who is calling', () => {
  const postrouting = 'filter hook postrouting priority mangle'
  assert.equal(inChain(postrouting, 'meta priority set 1:10'), 1)
  assert.equal(inChain(postrouting, 'oifname "eth0" meta priority set 1:10'), 0)
  assert.equal(inChain(postrouting, 'oif != "lo" meta priority set 1:10'), 0)
  assert.equal(inChain('filter hook input priority filter', 'meta priority set 1:10'), 0)
  const named = (line: string): number => marksInMangle('iptables', line, MARK).length
  assert.equal(named('-A POSTROUTING -j CLASSIFY --set-class 0001:0010'), 1)
  assert.equal(named('-A OUTPUT -j CLASSIFY --set-class 0001:0010'), 0, 'ours comes after it')
  assert.equal(named('-A POSTROUTING -o eth0 -j CLASSIFY --set-class 0001:0010'), 0)
  assert.equal(named('-A POSTROUTING ! -o lo -j CLASSIFY --set-class 0001:0010'), 0)
})

test('the next step says how a rule keeps our bit, and a rule that does is named no more', () => {
  const chain = (rule: string): string =>
    `table inet other {\n\tchain c {\n\t\ttype filter hook prerouting priority mangle; policy accept;\n\t\t${rule}\n\t}\n}\n`
  const [problem] = marksInRuleset(chain('meta mark set 0x00000001'), MARK)
  const advice = /nft: (.*) \| VALUE/.exec(problem?.hint ?? '')?.[1]
  assert.equal(advice, 'meta mark set meta mark & 0x1000')
  assert.deepEqual(marksInRuleset(chain(`${advice} | 0x00000001`), MARK), [])
})

test('what keeps our bit, comes before or after, or is of other packets does not', () => {
  const prerouting = 'filter hook prerouting priority mangle'
  assert.equal(inChain(prerouting, 'meta mark set meta mark | 0x00004000'), 0)
  assert.equal(inChain(prerouting, 'meta mark set meta mark & 0xffffbfff'), 0)
  assert.equal(inChain(prerouting, 'meta l4proto udp meta mark set ct mark'), 0)
  assert.equal(inChain(prerouting, 'iifname "wan0" meta mark set 0x00000001'), 0)
  assert.equal(inChain(prerouting, 'iifname "lo" meta mark set 0x00000001'), 1)
  assert.equal(inChain('route hook output priority mangle', 'meta mark set 0x00000001'), 0)
  assert.equal(inChain('filter hook prerouting priority filter + 30', 'meta mark set 0x1'), 0)
  assert.equal(inChain('filter hook input priority filter', 'meta mark set 0x00000001'), 0)
  assert.equal(inChain(prerouting, 'ct mark set meta mark'), 0)
})

test('iptables: masks say what is kept', () => {
  const named = (line: string): number => marksInMangle('iptables', line, MARK).length
  assert.equal(
    named('-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff'),
    1,
  )
  assert.equal(named('-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff'), 0)
  assert.equal(named('-A PREROUTING -p tcp -j MARK --set-xmark 0x1/0xffffffff'), 1)
  assert.equal(named('-A FORWARD -j MARK --set-xmark 0x40000/0x40000'), 0)
  assert.equal(named('-A PREROUTING -i wan0 -j MARK --set-xmark 0x1/0xffffffff'), 0)
  assert.equal(named('-A OUTPUT -j MARK --set-xmark 0x1/0xffffffff'), 0, 'ours comes after it')
})
