/**
 * Lets diverted traffic pass iptables filters of other programs that would drop it. A drop in any table is final, so an
 * accept in our own table does not help: a tagged rule of ours at the head of the chain does. Native tables:
 * native-filters.ts.
 *
 * Traffic diverted at OUTPUT still shows its old interface there, so `-o lo -j ACCEPT` does not match it.
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

/** Adds our rules to the iptables chains that drop unmatched traffic, so that marked packets pass. */
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

/** The first iptables chain that drops unmatched traffic and has no rule of ours; undefined when there is none. */
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

/** Removes our rules from the chains of iptables. Returns whether there were any. */
export async function clearForeignFilters(run: RunCommand): Promise<boolean> {
  let removed = false
  for (const tool of Object.values(TOOLS))
    for (const chain of CHAINS) {
      const listed = (await listChain(run, tool, chain)) ?? []
      if (await deleteOurs(run, tool, listed)) removed = true
    }
  return removed
}

/** The chain as printed by `-S`; undefined where the tool or the table does not exist. */
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

/** Whether a chain drops unmatched traffic. A drop with a match is an administrator's decision and is respected. */
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
