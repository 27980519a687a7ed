/**
 * Filters of others that drop what capture diverts. A drop in any table is final, so an accept of ours elsewhere does not
 * help: in the chains of iptables a tagged line of ours at the head does, other tables can only be named.
 *
 * What is diverted at OUTPUT still seems to leave by its old interface there, so `-o lo -j ACCEPT` does not let it pass.
 */
import { Problem } from '../../model/problem.ts'
import type { RunCommand } from './command.ts'
import type { Family } from './rules.ts'

const TOOLS: Record<Family, string> = { v4: 'iptables', v6: 'ip6tables' }
const CHAINS = ['OUTPUT', 'INPUT'] as const
/** A chain as `-S` prints it. */
interface ListedChain {
  readonly tool: string
  readonly chain: string
  readonly listed: readonly string[]
}

const TAG = ['-m', 'comment', '--comment', 'hostmesh']

/** Lets what has our mark pass the chains of iptables that drop what no rule accepts. */
export async function passForeignFilters(
  run: RunCommand,
  families: readonly Family[],
  mark: number,
): Promise<void> {
  for (const { tool, chain, listed } of await closedChains(run, families)) {
    await deleteOurs(run, tool, listed)
    await run(tool, ['-w', '5', '-I', ...lineWords(chain, mark)])
  }
}

/** The first chain of iptables that drops and lets nothing of ours pass; undefined when there is none. */
export async function foreignFilterDrift(
  run: RunCommand,
  families: readonly Family[],
): Promise<string | undefined> {
  const [first] = await closedChains(run, families)
  return first && `the chain ${first.chain} of ${first.tool} drops, and our line is not at its head`
}

async function closedChains(
  run: RunCommand,
  families: readonly Family[],
): Promise<readonly ListedChain[]> {
  const chains = families.flatMap((family) =>
    CHAINS.map(async (chain): Promise<ListedChain[]> => {
      const tool = TOOLS[family]
      const listed = await listChain(run, tool, chain)
      if (listed === undefined || !drops(listed)) return []
      const [first = ''] = listed.filter((line) => line.startsWith('-A '))
      return isOurs(first) ? [] : [{ tool, chain, listed }]
    }),
  )
  return (await Promise.all(chains)).flat()
}

/** Takes our lines out of the chains of iptables. Returns whether there were any. */
export async function clearForeignFilters(run: RunCommand): Promise<boolean> {
  let removed = false
  for (const tool of Object.values(TOOLS))
    for (const chain of CHAINS) {
      const listed = (await listChain(run, tool, chain)) ?? []
      if (await deleteOurs(run, tool, listed)) removed = true
    }
  return removed
}

/**
 * Base chains of native tables that drop what leaves, or what comes in, unless a rule says otherwise, and say nothing of our mark or of
 * loopback; in what nft prints of everything. Pure.
 */
export function findBlockingChains(ruleset: string, mark: number): readonly Problem[] {
  const problems: Problem[] = []
  const word = `0x${mark.toString(16).padStart(8, '0')}`
  let table = ''
  for (const part of ruleset.split(/^(?=table |\tchain )/m)) {
    table = /^table (\S+ \S+) \{/.exec(part)?.[1] ?? table
    const [, chain, hook] =
      /^\tchain (\S+) \{\n\t\ttype filter hook (output|input) /.exec(part) ?? []
    // Those of iptables have a line of ours.
    if (chain === undefined || /^ip6? filter$/.test(table) || table.startsWith('inet hostmesh'))
      continue
    if (!dropsTheRest(part)) continue
    // What is diverted comes in by loopback, marked, and so do the answers, without a mark.
    const passes =
      hook === 'input'
        ? /^\t\tiif(name)? "?lo"? (counter )?accept$/m
        : `meta mark & ${word} == ${word} accept`
    if (part.search(passes) !== -1) continue
    const [what, rule] =
      hook === 'input'
        ? ['loopback', 'iif lo accept']
        : [`the mark ${word}`, `meta mark and ${word} == ${word} accept`]
    problems.push(
      new Problem(
        'HM_CAPTURE_BLOCKED',
        `The chain ${chain} of table ${table} drops what capture diverts: it drops what no rule of it accepts, and none accepts ${what}`,
        { subject: `${table} ${chain}`, hint: `nft insert rule ${table} ${chain} ${rule}` },
      ),
    )
  }
  return problems
}

/** By its policy, or by its last rule. */
function dropsTheRest(chain: string): boolean {
  const rules = chain.split('\n').flatMap((line) => (/^\t\t\S/.test(line) ? [line.trim()] : []))
  const [type = ''] = rules
  return / policy drop;/.test(type) || /^(counter )?(drop$|reject\b)/.test(rules.at(-1) ?? '')
}

/** The chain by `-S`; undefined where the tool or the table is not there. */
async function listChain(
  run: RunCommand,
  tool: string,
  chain: string,
): Promise<readonly string[] | undefined> {
  try {
    const { status, stdout } = await run(tool, ['-w', '5', '-S', chain])
    return status === 0 ? stdout.split('\n').filter((line) => line !== '') : undefined
  } catch {
    return undefined
  }
}

/** Whether a chain drops what no rule accepts. What an administrator denies by a match is no business of ours. */
function drops(listed: readonly string[]): boolean {
  return listed.some((line) => /^-P \S+ DROP|^-A \S+ -j (DROP|REJECT)\b/.test(line))
}

async function deleteOurs(
  run: RunCommand,
  tool: string,
  listed: readonly string[],
): Promise<boolean> {
  const ours = listed.filter(isOurs)
  for (const line of ours)
    await run(tool, ['-w', '5', '-D', ...line.replace(/^-A /, '').split(' ')])
  return ours.length > 0
}

function isOurs(line: string): boolean {
  return / --comment "?hostmesh"? -j ACCEPT$/.test(line)
}

function lineWords(chain: string, mark: number): string[] {
  const word = `0x${mark.toString(16)}`
  const device = chain === 'INPUT' ? ['-i', 'lo'] : []
  return [chain, ...device, '-m', 'mark', '--mark', `${word}/${word}`, ...TAG, '-j', 'ACCEPT']
}
