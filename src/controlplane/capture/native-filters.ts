/**
 * Finds native tables of other programs that drop diverted traffic. A drop in any table is final: firewalld's chains
 * get a tagged rule of ours at their head, again after each of its reloads; other chains can only be reported.
 */
import { Problem } from '../../model/problem.ts'
import type { RunCommand } from './command.ts'
import { readRuleset } from './nft.ts'

/** How rules recognize diverted traffic on the output hook. */
export interface DivertedWords {
  /** The words for it in a sentence. */
  readonly what: string
  /** The rule that accepts it. */
  readonly rule: string
  /** Such a rule as nft lists it. */
  readonly listed: RegExp
}

/** Traffic that TPROXY is to receive. */
export function markedWords(mark: number): DivertedWords {
  const word = `0x${mark.toString(16).padStart(8, '0')}`
  return {
    what: `the mark ${word}`,
    rule: `meta mark and ${word} == ${word} accept`,
    listed: new RegExp(`^\\t\\tmeta mark & ${word} == ${word} (counter )?accept`, 'm'),
  }
}

/** Traffic that REDIRECT has sent to this host. */
export const redirectedWords: DivertedWords = {
  what: 'what is redirected to this host',
  rule: 'ct status dnat fib daddr type local accept',
  listed: /^\t\tct status dnat (fib daddr type local )?(counter )?accept/m,
}

/** Diverted traffic enters through loopback. */
const LOOPBACK = {
  what: 'loopback',
  rule: 'iif lo accept',
  listed: /^\t\tiif(name)? "?lo"? (counter )?accept/m,
}

const FIREWALLD = 'inet firewalld'
const COMMENT = 'comment "hostmesh"'

interface BlockingChain {
  readonly table: string
  readonly chain: string
  readonly missing: Pick<DivertedWords, 'what' | 'rule'>
}

/** The result of {@link passNativeFilters}. */
export interface NativeFilters {
  /** nft's listing of the ruleset, without counters and elements; empty where nft prints nothing. */
  readonly ruleset: string
  /** The chains that drop diverted traffic. */
  readonly problems: readonly Problem[]
}

/** Makes firewalld's chains accept diverted traffic. `ruleset` is nft's listing of the ruleset, if known already. */
export async function passNativeFilters(
  run: RunCommand,
  words: DivertedWords,
  ruleset?: string,
): Promise<NativeFilters> {
  ruleset ??= await listRuleset(run)
  const blocking = blockingChains(ruleset, words)
  const ours = blocking.filter(({ table }) => table === FIREWALLD)
  if (ours.length === 0) return { ruleset, problems: blocking.map(problemOf) }
  // firewalld may own its table (NftablesTableOwner): then it is reported like any other.
  for (const { chain, missing } of ours)
    await run('nft', ['insert', 'rule', ...FIREWALLD.split(' '), chain, missing.rule, COMMENT])
  const changed = await listRuleset(run)
  return { ruleset: changed, problems: findBlockingChains(changed, words) }
}

/** Removes our rules from the chains of firewalld. Returns whether there were any. */
export async function clearNativeFilters(run: RunCommand, words: DivertedWords): Promise<boolean> {
  const listed = await listRuleset(run, '-a')
  const table = listed.split(/^(?=table )/m).find((text) => text.startsWith(`table ${FIREWALLD} {`))
  let removed = false
  for (const part of (table ?? '').split(/^(?=\tchain )/m)) {
    const chain = /^\tchain (\S+) \{/.exec(part)?.[1]
    if (chain === undefined) continue
    for (const line of part.split('\n')) {
      const handle = /comment "hostmesh" # handle (\d+)$/.exec(line)?.[1]
      if (handle === undefined || !(words.listed.test(line) || LOOPBACK.listed.test(line))) continue
      const rule = ['delete', 'rule', ...FIREWALLD.split(' '), chain, 'handle', handle]
      if ((await run('nft', rule)).status === 0) removed = true
    }
  }
  return removed
}

/**
 * Base chains that drop outgoing or incoming traffic by default and have no rule for diverted traffic or loopback, from
 * nft's listing of the ruleset. Pure.
 */
export function findBlockingChains(ruleset: string, words: DivertedWords): readonly Problem[] {
  return blockingChains(ruleset, words).map(problemOf)
}

function blockingChains(ruleset: string, words: DivertedWords): readonly BlockingChain[] {
  return ruleset.split(/^(?=table )/m).flatMap((text) => {
    const table = /^table (\S+ \S+) \{/.exec(text)?.[1]
    // The chains of iptables have rules of ours.
    if (table === undefined || /^ip6? filter$/.test(table) || table.startsWith('inet hostmesh'))
      return []
    const chains = new Map(
      text
        .split(/^(?=\tchain )/m)
        .map((chain) => [/^\tchain (\S+) \{/.exec(chain)?.[1] ?? '', chain]),
    )
    return [...chains].flatMap(([chain, listed]): BlockingChain[] => {
      const hook = /^\tchain \S+ \{\n\t\ttype filter hook (output|input) /.exec(listed)?.[1]
      if (hook === undefined) return []
      const met = chainsMet(chain, chains)
      const missing = hook === 'input' ? LOOPBACK : words
      if (!met.some(dropsTheRest) || met.some((part) => missing.listed.test(part))) return []
      return [{ table, chain, missing }]
    })
  })
}

/** A chain and all chains that it sends outgoing packets to: a diverted packet still shows its old device. */
function chainsMet(first: string, chains: ReadonlyMap<string, string>): readonly string[] {
  const met = new Set([first])
  for (const name of met)
    for (const line of (chains.get(name) ?? '').split('\n')) {
      const target =
        /^\t\t(?:oif(?:name)? (?!"?lo"? )(?:\{[^}]*\}|\S+) )?(?:counter )?(?:jump|goto) (\S+)$/.exec(
          line,
        )?.[1]
      if (target !== undefined) met.add(target)
    }
  return [...met].map((name) => chains.get(name) ?? '')
}

/** Whether a chain drops unmatched traffic, by its policy or its last rule. */
function dropsTheRest(chain: string): boolean {
  const rules = chain.split('\n').flatMap((line) => (/^\t\t\S/.test(line) ? [line.trim()] : []))
  const [type = ''] = rules
  return / policy drop;/.test(type) || /^(counter )?(drop$|reject\b)/.test(rules.at(-1) ?? '')
}

function problemOf({ table, chain, missing: { what, rule } }: BlockingChain): Problem {
  return new Problem(
    'HM_CAPTURE_BLOCKED',
    `The chain ${chain} of table ${table} drops what capture diverts: it drops what no rule of it accepts, and none accepts ${what}`,
    { subject: `${table} ${chain}`, hint: `nft insert rule ${table} ${chain} ${rule}` },
  )
}

/** nft's listing of the ruleset; empty where nft is not installed, because no native filter can exist there. */
async function listRuleset(run: RunCommand, ...options: readonly string[]): Promise<string> {
  try {
    return await readRuleset(run, options)
  } catch {
    return ''
  }
}
