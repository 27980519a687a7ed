/**
 * The edge to nft: runs a transaction, reads tables and sets, puts failures into words. Knows nothing of plans.
 */
import { MeshError } from '../../lib/errors.ts'
import type { CommandResult, RunCommand } from './command.ts'

/** Runs one transaction: all of the text or nothing. @throws MeshError */
export async function applyNft(run: RunCommand, text: string): Promise<void> {
  if (text === '') return
  const result = await run('nft', ['-f', '-'], text)
  if (result.status !== 0) throw nftError('apply the rules', result)
}

/** Why the kernel or nft would not take a text; undefined when they would. Nothing is changed. */
export async function checkNft(run: RunCommand, text: string): Promise<string | undefined> {
  const result = await run('nft', ['--check', '-f', '-'], text)
  return result.status === 0 ? undefined : firstLine(result)
}

/** A table as nft prints it, without counters and without elements of named sets; undefined when there is none. */
export async function readTable(run: RunCommand, table: string): Promise<string | undefined> {
  const result = await run('nft', ['-s', '-t', 'list', 'table', 'inet', table])
  if (result.status === 0) return result.stdout
  if (isMissing(result)) return undefined
  throw nftError(`read the table ${table}`, result)
}

/** Elements of a set or map, without what says when they expire; undefined when there is no such set. */
export async function readElements(
  run: RunCommand,
  kind: 'set' | 'map',
  table: string,
  name: string,
): Promise<string[] | undefined> {
  const result = await run('nft', ['-n', 'list', kind, 'inet', table, name])
  if (result.status === 0) return parseElements(result.stdout)
  if (isMissing(result)) return undefined
  throw nftError(`read the ${kind} ${name}`, result)
}

/** Whether a map has an element of this key. */
export async function hasElement(
  run: RunCommand,
  table: string,
  name: string,
  key: string,
): Promise<boolean> {
  return (await run('nft', ['get', 'element', 'inet', table, name, `{ ${key} }`])).status === 0
}

/** Reads what `nft list set` prints. */
export function parseElements(text: string): string[] {
  const list = /elements = \{([^}]*)\}/.exec(text)?.[1] ?? ''
  return list
    .split(',')
    .map((element) => element.trim().replace(/ (timeout|expires) .*$/, ''))
    .filter((element) => element !== '')
}

/** Packets of the named counters of a table; empty when there is no such table. */
export async function readCounters(
  run: RunCommand,
  table: string,
): Promise<ReadonlyMap<string, number>> {
  const result = await run('nft', ['list', 'counters', 'table', 'inet', table])
  const counters = new Map<string, number>()
  if (result.status !== 0) return counters
  for (const [, name = '', packets] of result.stdout.matchAll(/counter (\S+) \{\s*packets (\d+)/g))
    counters.set(name, Number(packets))
  return counters
}

/** Names of one kind of object in a listing. */
export function namesIn(listing: string, kind: 'chain' | 'map' | 'set'): string[] {
  return [...listing.matchAll(new RegExp(`^\\t${kind} (\\S+) \\{`, 'gm'))].map(
    ([, name = '']) => name,
  )
}

function isMissing({ stderr }: CommandResult): boolean {
  return /No such file or directory/.test(stderr)
}

function firstLine({ stderr, status }: CommandResult): string {
  return stderr.trim().split('\n')[0] ?? `status ${status}`
}

/** The error of an nft that ended badly, with what to do about it as far as its words tell. */
export function nftError(intent: string, result: CommandResult): MeshError {
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
