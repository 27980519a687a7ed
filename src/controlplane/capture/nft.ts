/**
 * The interface to nft: runs a transaction, reads tables and sets, creates errors. Does not depend on plans.
 */
import { MeshError } from '../../lib/errors.ts'
import type { CommandResult, RunCommand } from './command.ts'
import type { PresentTable } from './nft-elements.ts'

/** Runs one atomic transaction. @throws MeshError */
export async function applyNft(run: RunCommand, text: string): Promise<void> {
  if (text === '') return
  const result = await run('nft', ['-f', '-'], text)
  if (result.status !== 0) throw nftError('apply the rules', result)
}

/** Why the kernel or nft would reject a text; undefined when they would accept it. Changes nothing. */
export async function checkNft(run: RunCommand, text: string): Promise<string | undefined> {
  const result = await run('nft', ['--check', '-f', '-'], text)
  return result.status === 0 ? undefined : firstLine(result)
}

/**
 * All tables as nft prints them, without elements of named sets and without counter values.
 *
 * This is the only listing of rules in use: for any other (`list table`, `list counters`, `list chain`,
 * `list tables`, `get element`) nft 1.0.6 reads all elements of all sets first, also with -t: 3 s for a set of 200,000
 * open connections.
 * @throws MeshError
 */
export async function readRuleset(
  run: RunCommand,
  options: readonly string[] = [],
): Promise<string> {
  return listTables(run, ['-s', '-t', ...options, 'list', 'ruleset'])
}

async function listTables(run: RunCommand, args: readonly string[]): Promise<string> {
  const result = await run('nft', args)
  if (result.status !== 0) throw nftError('read the tables', result)
  return result.stdout
}

/** Only the family of our tables: there may be many others. */
const OURS = ['list', 'ruleset', 'inet'] as const

/** One of our tables in the result of {@link readRuleset}; undefined when there is none. Pure. */
export function tableIn(ruleset: string, table: string): string | undefined {
  const head = `table inet ${table} {`
  const begin = ruleset.startsWith(head) ? 0 : ruleset.indexOf(`\n${head}`) + 1
  if (!ruleset.startsWith(head, begin)) return undefined
  const end = ruleset.indexOf('\n}\n', begin)
  return ruleset.slice(begin, end === -1 ? undefined : end + '\n}\n'.length)
}

/** One of our tables as in {@link readRuleset}; undefined when it does not exist. @throws MeshError */
export async function readTable(run: RunCommand, table: string): Promise<string | undefined> {
  return tableIn(await listTables(run, ['-s', '-t', ...OURS]), table)
}

/** Packets of the named counters of one of our tables; empty for a table that does not exist. @throws MeshError */
export async function readCounters(
  run: RunCommand,
): Promise<(table: string) => ReadonlyMap<string, number>> {
  const ruleset = await listTables(run, ['-t', ...OURS])
  return (table) => {
    const listed = tableIn(ruleset, table) ?? ''
    const counters = listed.matchAll(/^\tcounter (\S+) \{\s*packets (\d+)/gm)
    return new Map([...counters].map(([, name = '', packets]) => [name, Number(packets)]))
  }
}

/** The name of a set in one of our tables. */
export interface SetName {
  readonly table: string
  readonly name: string
}

/**
 * Elements of sets, without their expiry, by {@link setKey}; a set that does not exist is left out. One process
 * for all sets, with one command in each line: in a batch, nft 1.0.6 finds only the last set.
 * @throws MeshError
 */
export async function readSets(
  run: RunCommand,
  sets: readonly SetName[],
): Promise<ReadonlyMap<string, string[]>> {
  const lines = sets.map(({ table, name }) => `list set inet ${table} ${name}\n`)
  const result = await run('nft', ['-n', '-i'], lines.join(''))
  const problems = result.stderr.split('\n').filter((line) => /Error/.test(line))
  if (result.status !== 0 || problems.some((line) => !/No such file or directory/.test(line)))
    throw nftError('read the sets', result)
  return parseSets(result.stdout)
}

/** Whether nft was built with the interactive mode that {@link readSets} and the owner of tables need. */
export async function takesLines(run: RunCommand): Promise<boolean> {
  return (await run('nft', ['-i'])).status === 0
}

/** The key of a set in the result of {@link readSets}. */
export function setKey({ table, name }: SetName): string {
  return `${table} ${name}`
}

/** Whether a map has an element with this key: checks whether deleting it would succeed. */
export async function hasElement(
  run: RunCommand,
  table: string,
  name: string,
  key: string,
): Promise<boolean> {
  return (await checkNft(run, `delete element inet ${table} ${name} { ${key} }\n`)) === undefined
}

/** Parses the output of `nft list set`, repeated any number of times. Pure. */
function parseSets(text: string): ReadonlyMap<string, string[]> {
  const sets = new Map<string, string[]>()
  for (const listed of text.split(/^(?=.*\btable inet \S+ \{$)/m)) {
    const table = /\btable inet (\S+) \{\n/.exec(listed)?.[1]
    const name = /^\t(?:set|map) (\S+) \{\n/m.exec(listed)?.[1]
    if (table !== undefined && name !== undefined)
      sets.set(setKey({ table, name }), parseElements(listed))
  }
  return sets
}

/** The elements in nft's listing of one set. */
function parseElements(text: string): string[] {
  const list = /elements = \{([^}]*)\}/.exec(text)?.[1] ?? ''
  return list
    .split(',')
    .map((element) => element.trim().replace(/ (timeout|expires) .*$/, ''))
    .filter((element) => element !== '')
}

/** The present content of a table; undefined when the table does not exist. @throws MeshError */
export async function presentTable(
  run: RunCommand,
  table: string,
): Promise<PresentTable | undefined> {
  const listing = await readTable(run, table)
  if (listing === undefined) return undefined
  const names = (kind: 'chain' | 'map' | 'set'): string[] => namesIn(listing, kind)
  return { chains: names('chain'), maps: names('map'), sets: names('set') }
}

/** Names of all objects of one kind in a listing. */
function namesIn(listing: string, kind: 'chain' | 'map' | 'set'): string[] {
  return [...listing.matchAll(new RegExp(`^\\t${kind} (\\S+) \\{`, 'gm'))].map(
    ([, name = '']) => name,
  )
}

function firstLine({ stderr, status }: CommandResult): string {
  return stderr.trim().split('\n')[0] ?? `status ${status}`
}

/** The error for an nft that failed, with a hint where its output identifies the cause. */
function nftError(intent: string, result: CommandResult): MeshError {
  const words = result.stderr.trim().replaceAll(/\s*\n\s*/g, '; ') || `status ${result.status}`
  if (/Operation not permitted|must be root/i.test(result.stderr))
    return new MeshError('HM_CAPTURE_PERMISSION_DENIED', `nft could not ${intent}: ${words}`, {
      hint: 'Run as root or with both capabilities (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)',
    })
  if (/not supported|Protocol error/i.test(result.stderr))
    return new MeshError('HM_CAPTURE_KERNEL_UNSUPPORTED', `nft could not ${intent}: ${words}`, {
      hint: 'Load the kernel modules: modprobe -a nft_tproxy nft_socket nft_fib_inet nft_reject_inet; or set capture.backend: iptables',
    })
  return new MeshError('HM_CAPTURE_APPLY_FAILED', `nft could not ${intent}: ${words}`)
}
