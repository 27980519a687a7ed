/**
 * Filters of iptables that drop what capture diverts. A drop in any table is final, so an accept of ours elsewhere does not
 * help: a tagged line of ours at the head of the chain does. Native tables: native-filters.ts.
 *
 * What is diverted at OUTPUT still seems to leave by its old interface there, so `-o lo -j ACCEPT` does not let it pass.
 */
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
