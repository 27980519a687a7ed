/**
 * The rule generator: golden files for its text, properties for what no input may ever make it write.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { iptablesRules, type TableRules } from '../../src/controlplane/capture/iptables-rules.ts'
import { setNames } from '../../src/controlplane/capture/iptables-words.ts'
import { cgroupElements } from '../../src/controlplane/capture/nft-cgroups.ts'
import { renderElements, renderReplacement } from '../../src/controlplane/capture/nft-elements.ts'
import { renderGuardTable } from '../../src/controlplane/capture/nft-guard-rules.ts'
import { renderCaptureTable } from '../../src/controlplane/capture/nft-rules.ts'
import type { NftSettings } from '../../src/controlplane/capture/nft-words.ts'
import {
  type CapturePlan,
  captureRules,
  families,
  parseRange,
} from '../../src/controlplane/capture/rules.ts'
import {
  firstDifference,
  isEmpty,
  ownRules,
  parseSavedRules,
  renderClear,
  renderRestore,
} from '../../src/controlplane/capture/saved-rules.ts'
import { MeshError } from '../../src/lib/errors.ts'

const vectors = join(import.meta.dirname, '..', 'vectors', 'capture')

const basePlan: CapturePlan = {
  workloads: [],
  virtualRange: '240.0.0.0/4',
  virtualRange6: 'fdc6:6d65:7368::/64',
  daemonUid: 999,
  ownPorts: [15_443],
}

const plans: Record<string, CapturePlan> = {
  'no-workloads': basePlan,
  users: {
    ...basePlan,
    workloads: [
      { selector: { kind: 'user', user: '1001' }, capturePort: 15_100 },
      { selector: { kind: 'user', user: '1002' }, capturePort: 15_101 },
    ],
    ownPorts: [15_443, 15_101, 15_100],
  },
  'cgroups-deepest-first': {
    ...basePlan,
    workloads: [
      { selector: { kind: 'user', user: '33' }, capturePort: 15_100 },
      { selector: { kind: 'cgroup', path: 'system.slice/web.service' }, capturePort: 15_101 },
      {
        selector: { kind: 'cgroup', path: 'system.slice/web.service/worker-a' },
        capturePort: 15_102,
      },
      {
        selector: { kind: 'cgroup', path: 'system.slice/my\\x2dapp@1.service' },
        capturePort: 15_103,
      },
    ],
  },
  containers: {
    ...basePlan,
    workloads: [
      { selector: { kind: 'sourceAddress', ip: '172.17.0.2' }, capturePort: 15_100 },
      { selector: { kind: 'sourceAddress', ip: 'FD00:0:0::2' }, capturePort: 15_101 },
    ],
  },
  'default-identity': { ...basePlan, defaultCapturePort: 15_199 },
  'unknown-refused': {
    ...basePlan,
    workloads: [{ selector: { kind: 'user', user: '1001' }, capturePort: 15_100 }],
    refusesUnknownAtInstances: true,
  },
  'many-own-ports': {
    ...basePlan,
    ownPorts: Array.from({ length: 20 }, (_, index) => 20_000 + index * 2).concat(30_000, 30_001),
  },
}

function golden(name: string): string {
  return readFileSync(join(vectors, `${name}.txt`), 'utf8')
}

/** As on a host on which `web.service` runs, and ssh. */
const cgroups = [
  { path: 'init.scope', isAbove: false },
  { path: 'system.slice', isAbove: true },
  { path: 'system.slice/ssh.service', isAbove: false },
  { path: 'system.slice/web.service', isAbove: true },
  { path: 'system.slice/web.service/worker-b', isAbove: false },
]

function settingsOf({ workloads }: CapturePlan): NftSettings {
  const hasUnits = workloads.some(({ selector }) => selector.kind === 'cgroup')
  return { ...settings, cgroups: hasUnits ? cgroups : [] }
}

const settings: NftSettings = {
  mark: 0x1000,
  cgroups: [],
  cgroupPrefix: '',
  spareSeconds: 3_600,
  sparesWhileUsed: false,
}

function nftText(plan: CapturePlan): string {
  const made = settingsOf(plan)
  return [
    renderGuardTable(plan, made),
    renderCaptureTable(plan, made),
    renderElements(cgroupElements(plan, made)),
  ].join('\n')
}

function fullText(plan: CapturePlan): string {
  return families
    .map((family) => {
      const made = { ...settingsOf(plan), waits: true, refusesUnseen: false }
      return `# IP${family}\n${renderRestore(iptablesRules(plan, family, made), [])}`
    })
    .join('\n')
}

describe('golden files', () => {
  for (const [name, plan] of Object.entries(plans))
    test(`the plan "${name}" is written as test/vectors/capture/${name}.txt says`, () => {
      assert.equal(fullText(plan), golden(name))
    })

  for (const [name, plan] of Object.entries(plans))
    test(`the plan "${name}" is written for nft as test/vectors/capture/${name}.nft says`, () => {
      assert.equal(nftText(plan), readFileSync(join(vectors, `${name}.nft`), 'utf8'))
    })

  test('what an earlier plan left in our table goes in the transaction that adds the new rules', () => {
    const present = {
      chains: ['callers', 'caller_9', 'output'],
      maps: ['cgroups_2', 'cgroups_5'],
      sets: ['open4', 'left_over'],
    }
    const text = renderReplacement('hostmesh', captureTable('cgroups-deepest-first'), present)
    const head = text.slice(0, text.indexOf('table inet hostmesh {'))
    assert.deepEqual(head.trimEnd().split('\n'), [
      'flush table inet hostmesh',
      'flush map inet hostmesh cgroups_2',
      'flush map inet hostmesh cgroups_5',
      'delete chain inet hostmesh caller_9',
      'delete map inet hostmesh cgroups_5',
      'delete set inet hostmesh left_over',
    ])
  })

  test('left-over jumps, rules and chains are replaced in the transaction that adds the new ones', () => {
    const present = ownRules(parseSavedRules(golden('saved-before')))
    const wanted = iptablesRules(plans['users'] ?? basePlan, 'v4')
    assert.equal(renderRestore(wanted, present), golden('replace'))
  })

  test('clearing names own chains and jumps only, nat first', () => {
    const present = ownRules(parseSavedRules(golden('saved-before')))
    assert.equal(renderClear(present), golden('clear'))
  })
})

describe('comparison with what iptables-save prints', () => {
  const wanted = iptablesRules(plans['cgroups-deepest-first'] ?? basePlan, 'v4')
  const saved = (text: string): readonly TableRules[] => ownRules(parseSavedRules(text))
  const asSaved = renderRestore(wanted, []).replaceAll(
    /^-I (\S+) \d /gm,
    (_, chain: string) => `-A ${chain} `,
  )

  test('what was applied reads back as in place', () => {
    assert.equal(firstDifference(wanted, saved(asSaved)), undefined)
  })

  test('another spelling of the same rule counts as the same rule', () => {
    const respelled = asSaved
      .replaceAll('-d 240.0.0.0/4 -p tcp', '-p tcp -m tcp -d 240.0.0.0/4')
      .replaceAll('"system.slice/web.service"', 'system.slice/web.service')
      .replaceAll('--comment hostmesh', '--comment "hostmesh"')
    assert.equal(firstDifference(wanted, saved(respelled)), undefined)
  })

  for (const [what, edit] of Object.entries({
    'a missing rule': (text: string) => text.replace(/^-A HOSTMESH_LOCAL .*\n/m, ''),
    'a changed port': (text: string) => text.replace('--to-ports 15101', '--to-ports 15109'),
    'an added rule': (text: string) =>
      text.replace(/^COMMIT\n$/m, '-A HOSTMESH_LOCAL -p tcp -j RETURN\nCOMMIT\n'),
    'a missing jump': (text: string) => text.replace(/^-A OUTPUT .*\n/m, ''),
    'a doubled jump': (text: string) => text.replace(/^-A OUTPUT .*\n/gm, '$&$&'),
    'a jump behind a foreign rule': (text: string) =>
      text.replace(/^-A OUTPUT /gm, '-A OUTPUT -j DOCKER\n-A OUTPUT '),
    'swapped rules': (text: string) =>
      text.replace(/^(-A HOSTMESH_LOCAL .*\n)(-A HOSTMESH_LOCAL .*\n)/m, '$2$1'),
    'a stale chain': (text: string) => text.replace('*nat\n', '*nat\n:HOSTMESH_OLD - [0:0]\n'),
    'an emptied host': () => '',
  }))
    test(`${what} is noticed`, () => {
      const changed = edit(asSaved)
      assert.notEqual(changed, asSaved)
      assert.equal(typeof firstDifference(wanted, saved(changed)), 'string')
    })

  test('a foreign rule whose comment mentions our chains is not ours', () => {
    const text = '*nat\n-A OUTPUT -m comment --comment "x -j HOSTMESH_OUTPUT" -j ACCEPT\nCOMMIT\n'
    assert.equal(isEmpty(saved(text)), true)
  })
})

describe('refusals', () => {
  const refused: [string, Partial<CapturePlan>][] = [
    ['a port 0', { workloads: [{ selector: { kind: 'user', user: '1' }, capturePort: 0 }] }],
    ['a user name', { workloads: [{ selector: { kind: 'user', user: 'web' }, capturePort: 1 }] }],
    [
      'the daemon as workload',
      { workloads: [{ selector: { kind: 'user', user: '999' }, capturePort: 1 }] },
    ],
    [
      'a cgroup path that climbs',
      { workloads: [{ selector: { kind: 'cgroup', path: 'a/../b' }, capturePort: 1 }] },
    ],
    [
      'a host name as source address',
      { workloads: [{ selector: { kind: 'sourceAddress', ip: 'db' }, capturePort: 1 }] },
    ],
    [
      'two workloads on one port',
      {
        workloads: [
          { selector: { kind: 'user', user: '1' }, capturePort: 7 },
          { selector: { kind: 'user', user: '2' }, capturePort: 7 },
        ],
      },
    ],
    [
      'one identity for two workloads',
      {
        workloads: [
          { selector: { kind: 'user', user: '1' }, capturePort: 7 },
          { selector: { kind: 'user', user: '01' }, capturePort: 8 },
        ],
      },
    ],
    ['a range that holds everything', { virtualRange: '0.0.0.0/0' }],
    ['a range that holds loopback', { virtualRange: '112.0.0.0/4' }],
    ['a range of the other family', { virtualRange: 'fdc6::/64' }],
    ['a range without a prefix', { virtualRange6: 'fdc6::' }],
    ['a root daemon of number -1', { daemonUid: -1 }],
  ]
  for (const [what, part] of refused)
    test(`${what} is refused by name, before any rule exists`, () => {
      assert.throws(
        () =>
          captureRules({ ...basePlan, ...part }, 'v4') &&
          captureRules({ ...basePlan, ...part }, 'v6'),
        (error) => error instanceof MeshError && error.code === 'HM_CAPTURE_PLAN_INVALID',
      )
    })

  test('a range is written as the network it lies in', () => {
    assert.equal(parseRange('250.1.2.3/4', 'v4'), '240.0.0.0/4')
    assert.equal(parseRange('FDC6:6D65:7368::1/63', 'v6'), 'fdc6:6d65:7368::/63')
  })
})

const nasty = fc.string({
  unit: fc.constantFrom(
    'a',
    'Z',
    '9',
    '/',
    '.',
    '-',
    '\\',
    ' ',
    '\n',
    '"',
    "'",
    '*',
    ':',
    'é',
    '\0',
    '%',
  ),
})
const anyPort = fc.integer({ min: 1, max: 65_535 })
const anySelector = fc.oneof(
  fc.record({
    kind: fc.constant('user' as const),
    user: fc.oneof(fc.nat(70_000).map(String), nasty),
  }),
  fc.record({
    kind: fc.constant('cgroup' as const),
    path: fc.oneof(nasty, fc.stringMatching(/^[a-z.\\-]{1,9}(\/[a-z@.]{1,9}){0,3}$/)),
  }),
  fc.record({
    kind: fc.constant('sourceAddress' as const),
    ip: fc.oneof(fc.ipV4(), fc.ipV6(), nasty),
  }),
)
const anyPlan = fc.record({
  workloads: fc.uniqueArray(fc.record({ selector: anySelector, capturePort: anyPort }), {
    maxLength: 6,
    selector: (workload) => workload.capturePort,
  }),
  defaultCapturePort: fc.option(anyPort, { nil: undefined }),
  refusesUnknownAtInstances: fc.boolean(),
  virtualRange: fc.oneof(fc.constant('240.0.0.0/4'), fc.constant('10.64.0.0/10'), nasty),
  virtualRange6: fc.constant('fdc6:6d65:7368::/64'),
  daemonUid: fc.nat(70_000),
  ownPorts: fc.array(anyPort, { maxLength: 40 }),
})

/** The rules of a plan in both families; undefined when it is refused. */
function rulesOrRefusal(plan: CapturePlan): readonly (readonly TableRules[])[] | undefined {
  try {
    return families.map((family) => iptablesRules(plan, family))
  } catch (error) {
    assert.ok(error instanceof MeshError)
    return undefined
  }
}

/** The table that diverts, of one of the plans. */
function captureTable(name: string): string {
  const plan = plans[name] ?? basePlan
  return renderCaptureTable(plan, settingsOf(plan))
}

/**
 * Whether a rule lets only what the mesh owns through to its target: its destinations, what it has diverted, or
 * anything while somebody has emptied the sets that know these.
 */
function isOwnedDestination(line: string, range: string): boolean {
  const addresses = [setNames.instances, setNames.permitted, setNames.guarded]
  return (
    line.includes(` -d ${range} `) ||
    addresses.some((names) =>
      Object.values(names).some((set) => line.includes(` --match-set ${set} dst,dst `)),
    ) ||
    Object.values(setNames.intact).some((set) => line.includes(` ! --match-set ${set} dst `)) ||
    line.includes(' --ctstate DNAT ')
  )
}

describe('properties', () => {
  test('no rule diverts or refuses without a condition on the destination', () => {
    fc.assert(
      fc.property(anyPlan, (plan) => {
        if (rulesOrRefusal(plan) === undefined) return
        for (const family of families)
          for (const { matches, action } of captureRules(plan, family))
            if (action.kind !== 'pass') assert.ok(matches.some(({ kind }) => kind === 'mesh'))
      }),
      { numRuns: 500, seed: 4 },
    )
  })

  test('no text of a user leaves its place in an nft text', () => {
    fc.assert(
      fc.property(anyPlan, (plan) => {
        if (rulesOrRefusal(plan) === undefined) return
        for (const [, quoted = ''] of nftText(plan).matchAll(/"([^"]*)"/g))
          assert.match(quoted, /^[A-Za-z0-9_.@:+=,~\\/-]+$/)
        for (const line of nftText(plan)
          .replaceAll(/"[^"]*"/g, 'x')
          .split('\n'))
          assert.match(line, /^[\w .,:;@{}()[\]&|!=*+/-]*$/)
      }),
      { numRuns: 300, seed: 5 },
    )
  })

  test('no path through the rules reaches REDIRECT or REJECT without a rule on the destination', () => {
    let accepted = 0
    fc.assert(
      fc.property(anyPlan, (plan) => {
        const rules = rulesOrRefusal(plan)
        if (rules === undefined) return
        accepted += 1
        for (const [index, tables] of rules.entries()) {
          const range = parseRange(
            index === 0 ? plan.virtualRange : plan.virtualRange6,
            index === 0 ? 'v4' : 'v6',
          )
          for (const { jumps, chains } of tables) {
            const visit = (line: string, isOwned: boolean, depth: number): void => {
              assert.ok(depth < 5, 'the chains do not loop')
              const owned = isOwned || isOwnedDestination(line, range)
              const target = / -j (\S+)/.exec(line)?.[1] ?? ''
              if (target === 'REDIRECT' || target === 'REJECT') assert.ok(owned, line)
              else if (!['RETURN', 'ACCEPT', 'DROP', 'SET'].includes(target))
                for (const next of chains.get(target) ?? assert.fail(`no chain ${target}`))
                  visit(next, owned, depth + 1)
            }
            for (const jump of jumps) visit(jump.line, false, 0)
          }
        }
      }),
      { numRuns: 500, seed: 1 },
    )
    assert.ok(accepted > 50, `only ${accepted} plans were not refused`)
  })

  test('every line is one of ours: no text of a user starts a line, a table or another rule', () => {
    fc.assert(
      fc.property(anyPlan, (plan) => {
        for (const tables of rulesOrRefusal(plan) ?? []) {
          const text = renderRestore(tables, [])
          for (const line of text.trimEnd().split('\n'))
            assert.match(
              line,
              /^(\*(nat|filter)|COMMIT|:HOSTMESH_[A-Z]+ - \[0:0\]|-I (INPUT|OUTPUT|FORWARD|PREROUTING) [1-4] [^\n]* -m comment --comment hostmesh -j HOSTMESH_[A-Z]+|-A HOSTMESH_[A-Z]+ ([^\n]* )?-m comment --comment hostmesh -j (RETURN|ACCEPT|DROP|HOSTMESH_[A-Z]+|REDIRECT --to-ports \d+|REJECT --reject-with (tcp-reset|icmp6?-port-unreachable)|SET (--add-set hostmesh_spared6? src,src,dst --exist --timeout \d+|--del-set hostmesh_spared6? src,src,dst)))$/,
            )
          assert.equal(text.match(/^COMMIT$/gm)?.length, 2)
        }
      }),
      { numRuns: 500, seed: 2 },
    )
  })

  test('applying a plan over any other plan gives the text the plan alone reads back as', () => {
    fc.assert(
      fc.property(anyPlan, anyPlan, (before, after) => {
        const [old, next] = [rulesOrRefusal(before)?.[0], rulesOrRefusal(after)?.[0]]
        if (old === undefined || next === undefined) return
        const result = execute(renderRestore(next, old), old)
        assert.equal(firstDifference(next, result), undefined)
        assert.ok(isEmpty(execute(renderClear(result), result)))
      }),
      { numRuns: 300, seed: 3 },
    )
  })
})

/** What `iptables-restore --noflush` makes of a text, on own rules alone. */
function execute(text: string, present: readonly TableRules[]): readonly TableRules[] {
  const state = new Map(
    present.map(({ table, jumps, chains }) => [
      table,
      {
        jumps: jumps.map(({ line }) => line),
        chains: new Map([...chains].map(([k, v]) => [k, [...v]])),
      },
    ]),
  )
  let table = state.get('nat')
  for (const line of text.split('\n')) {
    const [word = '', chain = ''] = line.split(' ')
    if (word.startsWith('*')) table = state.get(word === '*nat' ? 'nat' : 'filter')
    else if (word.startsWith(':')) table?.chains.set(word.slice(1), [])
    else if (word === '-X') assert.ok(table?.chains.delete(chain))
    else if (word === '-I') {
      const [, , position = ''] = line.split(' ')
      const rule = `-A ${chain} ${line.slice(`-I ${chain} ${position} `.length)}`
      table?.jumps.splice(indexInChain(table.jumps, chain, Number(position)), 0, rule)
    } else if (word === '-A') table?.chains.get(chain)?.push(line)
    else if (word === '-D') {
      const at = table?.jumps.indexOf(`-A ${line.slice('-D '.length)}`) ?? -1
      assert.ok(at >= 0, `nothing to delete: ${line}`)
      table?.jumps.splice(at, 1)
    }
  }
  return [...state].map(([name, { jumps, chains }]) => ({
    table: name,
    jumps: jumps.map((line, index) => {
      const chain = line.split(' ')[1] ?? ''
      return { chain, line, position: positionAt(jumps, chain, index) }
    }),
    chains,
  }))
}

/** Where in a list of rules of several chains a new one goes to be number `position` of its chain. */
function indexInChain(rules: readonly string[], chain: string, position: number): number {
  const own = rules.flatMap((rule, index) => (rule.startsWith(`-A ${chain} `) ? [index] : []))
  assert.ok(position <= own.length + 1, `no place ${position} in ${chain}`)
  return own[position - 1] ?? rules.length
}

/** Which number of its chain the rule at `index` is. */
function positionAt(rules: readonly string[], chain: string, index: number): number {
  return rules.slice(0, index + 1).filter((rule) => rule.startsWith(`-A ${chain} `)).length
}
