/**
 * Parses the output of `iptables-save` and renders the input of `iptables-restore --noflush`. Pure.
 *
 * Three texts are rendered: from the present rules to the plan's, back to the previous rules,
 * and to none of ours. Under --noflush a declared chain (`:NAME - [0:0]`) is emptied and everything else
 * stays, so each text is one idempotent transaction per table. Jumps are the exception (inserting one twice
 * makes two), so the text first deletes each own jump that was found.
 */
import type { Jump, TableRules } from './iptables-rules.ts'
import { CHAIN_PREFIX } from './iptables-words.ts'

/** One rule and its counters; they are 0 when the save was made without `-c`. */
export interface SavedRule {
  readonly chain: string
  /** `-A CHAIN ...` as printed. */
  readonly line: string
  readonly packets: number
  readonly bytes: number
}

/** The content of a table, foreign rules included. */
export interface SavedTable {
  readonly chains: readonly string[]
  readonly rules: readonly SavedRule[]
}

/** Tables by name; a table that was never used is absent. */
export type SavedRules = ReadonlyMap<string, SavedTable>

/** Parses the output of `iptables-save`, with or without counters. Unknown lines are skipped. */
export function parseSavedRules(text: string): SavedRules {
  const tables = new Map<string, { chains: string[]; rules: SavedRule[] }>()
  let table: { chains: string[]; rules: SavedRule[] } | undefined
  for (const line of text.split('\n')) {
    if (line.startsWith('*')) {
      table = { chains: [], rules: [] }
      tables.set(line.slice(1).trim(), table)
    } else if (line.startsWith(':')) {
      table?.chains.push(line.slice(1).split(' ')[0] ?? '')
    } else {
      const rule = parseRule(line)
      if (rule !== undefined) table?.rules.push(rule)
    }
  }
  return tables
}

function parseRule(line: string): SavedRule | undefined {
  const match = /^(?:\[(\d+):(\d+)\] )?(-A (\S+) .*)$/.exec(line)
  if (match === null) return undefined
  const [, packets = '0', bytes = '0', rule = '', chain = ''] = match
  return { chain, line: rule.trimEnd(), packets: Number(packets), bytes: Number(bytes) }
}

/** Our part of a save, as rules that could be applied again. */
export function ownRules(saved: SavedRules): readonly TableRules[] {
  return (['filter', 'nat'] as const).map((name) => {
    const table = saved.get(name) ?? { chains: [], rules: [] }
    const chains = new Map<string, string[]>()
    for (const chain of table.chains) if (isOwn(chain)) chains.set(chain, [])
    for (const rule of table.rules) chains.get(rule.chain)?.push(rule.line)
    return { table: name, jumps: jumpsOf(table), chains }
  })
}

/** Whether there are no rules of ours. */
export function isEmpty(tables: readonly TableRules[]): boolean {
  return tables.every((table) => table.jumps.length === 0 && table.chains.size === 0)
}

/**
 * The transaction that turns `present` (our part of a save) into `wanted`. Own chains that are no longer
 * wanted are deleted; each jump ends up exactly once, at its position.
 */
export function renderRestore(
  wanted: readonly TableRules[],
  present: readonly TableRules[],
): string {
  const lines: string[] = []
  for (const table of wanted) {
    const before = present.find((other) => other.table === table.table)
    const stale = [...(before?.chains.keys() ?? [])].filter((chain) => !table.chains.has(chain))
    const nothing = table.chains.size === 0 && table.jumps.length === 0
    if (nothing && stale.length === 0 && (before?.jumps ?? []).length === 0) continue
    lines.push(`*${table.table}`)
    for (const chain of [...table.chains.keys(), ...stale]) lines.push(`:${chain} - [0:0]`)
    for (const jump of before?.jumps ?? []) lines.push(`-D ${jump.line.slice('-A '.length)}`)
    for (const jump of table.jumps) lines.push(insertLine(jump))
    for (const rules of table.chains.values()) lines.push(...rules)
    for (const chain of stale) lines.push(`-X ${chain}`)
    lines.push('COMMIT')
  }
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`
}

/**
 * The transaction that removes exactly our rules. nat goes first, in the reverse order of ownRules():
 * between the two commits a virtual address is still refused, so traffic to it never leaves the host.
 */
export function renderClear(present: readonly TableRules[]): string {
  const gone = present.map((table) => ({ table: table.table, jumps: [], chains: new Map() }))
  return renderRestore(gone.toReversed(), present)
}

/**
 * The first difference between wanted and present rules, in words; undefined when there is none.
 * Spelling is ignored (quoting and the order of matches vary between versions of the tools).
 */
export function firstDifference(
  wanted: readonly TableRules[],
  present: readonly TableRules[],
): string | undefined {
  for (const table of wanted) {
    const there = present.find((other) => other.table === table.table)
    if (there === undefined) return `table ${table.table} is missing`
    const difference = jumpDifference(table, there) ?? chainDifference(table, there)
    if (difference !== undefined) return difference
  }
  return undefined
}

function jumpDifference(wanted: TableRules, there: TableRules): string | undefined {
  for (const jump of wanted.jumps) {
    const same = there.jumps.filter(
      (other) => other.chain === jump.chain && ruleKey(other.line) === ruleKey(jump.line),
    )
    const where = `${wanted.table} ${jump.chain}`
    if (same.length === 0) return `${where} has no jump "${jump.line}"`
    if (same.length > 1) return `${where} has the jump "${jump.line}" ${same.length} times`
    if (same[0]?.position !== jump.position)
      return `${where} has the jump "${jump.line}" at position ${same[0]?.position}, not ${jump.position}`
  }
  if (there.jumps.length > wanted.jumps.length) {
    const keys = new Set(wanted.jumps.map((jump) => ruleKey(jump.line)))
    const extra = there.jumps.find((jump) => !keys.has(ruleKey(jump.line)))
    return `${wanted.table} has an unexpected jump "${extra?.line}"`
  }
  return undefined
}

function chainDifference(wanted: TableRules, there: TableRules): string | undefined {
  for (const [chain, rules] of wanted.chains) {
    const present = there.chains.get(chain)
    if (present === undefined) return `${wanted.table} has no chain ${chain}`
    for (let i = 0; i < Math.max(rules.length, present.length); i += 1) {
      const [want, have] = [rules[i], present[i]]
      if (want === undefined) return `${wanted.table} has an unexpected rule "${have}"`
      if (have === undefined) return `${wanted.table} lacks the rule "${want}"`
      if (ruleKey(want) !== ruleKey(have))
        return `${wanted.table} has the rule "${have}" in place of "${want}"`
    }
  }
  const extra = [...there.chains.keys()].find((chain) => !wanted.chains.has(chain))
  return extra === undefined ? undefined : `${wanted.table} has an unexpected chain ${extra}`
}

/** A rule in normal form: words unquoted, names of match modules left out, options in one order. */
function ruleKey(line: string): string {
  const options: string[] = []
  let negation = ''
  for (const word of splitWords(line)) {
    if (word === '!') negation = '! '
    else if (/^-{1,2}[A-Za-z]/.test(word) || options.length === 0) {
      options.push(`${negation}${word}`)
      negation = ''
    } else options.push(`${options.pop()} ${word}`)
  }
  return options
    .filter((option) => !option.startsWith('-m '))
    .toSorted()
    .join('\n')
}

/** Splits as iptables-restore does: double quotes group, a backslash inside them escapes. */
function splitWords(line: string): string[] {
  return [...line.matchAll(/"((?:[^"\\]|\\.)*)"|\S+/g)].map(([word, quoted]) =>
    quoted === undefined ? word : quoted.replaceAll(/\\(.)/g, '$1'),
  )
}

function insertLine(jump: Jump): string {
  const rule = jump.line.slice(`-A ${jump.chain} `.length)
  return `-I ${jump.chain} ${jump.position} ${rule}`
}

function jumpsOf(table: SavedTable): Jump[] {
  const positions = new Map<string, number>()
  const jumps: Jump[] = []
  for (const rule of table.rules) {
    const position = (positions.get(rule.chain) ?? 0) + 1
    positions.set(rule.chain, position)
    if (!isOwn(rule.chain) && isOwn(targetOf(rule.line)))
      jumps.push({ chain: rule.chain, line: rule.line, position })
  }
  return jumps
}

/** The chain or target of a rule. Quoted text is one word, so a comment is not mistaken for a target. */
function targetOf(line: string): string {
  const words = splitWords(line)
  const at = words.findLastIndex((word) => word === '-j' || word === '-g')
  return at < 0 ? '' : (words[at + 1] ?? '')
}

function isOwn(chain: string): boolean {
  return chain.startsWith(CHAIN_PREFIX)
}
