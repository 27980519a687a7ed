/**
 * The kernel sets that iptables rules match against: fills, compares and destroys them.
 *
 * The address of a new instance is diverted first and guarded last: connections open to it at that point began
 * before, and are spared.
 */
import { existsSync } from 'node:fs'
import { sleep } from '../../lib/abort.ts'
import { errorCode } from '../../lib/errors.ts'
import { formatAddress } from '../../model/address.ts'
import type { MeshAddresses } from './backend.ts'
import { ignoreMissingTool, type RunCommand } from './command.ts'
import {
  EVERY_ADDRESS,
  nextSetName,
  type OwnSet,
  ownSets,
  renderCreate,
  renderReplace,
  renderSpare,
  renderUpdate,
  setMembers,
} from './ipset.ts'
import { toolError } from './iptables.ts'
import { setNames } from './iptables-words.ts'
import { type CapturePlan, capturePorts, type Family, families } from './rules.ts'
import { isSameSet, type SetMembers } from './set-members.ts'
import { listSockets, unredirected } from './sockets.ts'

/** A set stays in use for a moment after its last rule was removed. Milliseconds. */
const DESTROY_DEADLINE_MS = 3_000
const DESTROY_RETRY_MS = 20

/** The sets of this host. */
export class KernelSets {
  readonly #run: RunCommand
  readonly #spareSeconds: number
  #wanted: Record<'instances' | 'permitted', Record<Family, SetMembers>> | undefined
  /** The content of the sets, as far as this process knows. */
  readonly #synced = new Map<string, SetMembers>()

  /** `spareSeconds`: how long a connection from before capture is spared. */
  constructor(run: RunCommand, spareSeconds: number) {
    this.#run = run
    this.#spareSeconds = spareSeconds
  }

  /** Sets the wanted content; {@link divert} and {@link guard} apply it. */
  want({ instances, permitted }: MeshAddresses): void {
    this.#wanted = { instances: setMembers(instances), permitted: setMembers(permitted) }
  }

  /** Number of addresses in the set of instances of a family; undefined when the set does not exist. */
  async instances(family: Family): Promise<number | undefined> {
    return (await this.#read(setNames.instances[family]))?.size
  }

  /** Number of connections in the sets of spared connections. */
  async sparedCount(): Promise<number> {
    let spared = 0
    for (const { name, kind } of activeSets())
      if (kind === 'spared') spared += (await this.#read(name))?.size ?? 0
    return spared
  }

  /** Creates all sets, and fills those that nat uses once the wanted content is known. */
  async divert(): Promise<void> {
    for (const set of activeSets()) {
      const { kind, family } = set
      const wanted =
        kind === 'instances' || kind === 'permitted' ? this.#wanted?.[kind][family] : undefined
      if (kind === 'intact') await this.#fill(set, EVERY_ADDRESS[family])
      else if (wanted === undefined) await restoreSets(this.#run, renderCreate(set))
      else await this.#fill(set, wanted)
    }
  }

  /** Guards the diverted addresses; open connections to addresses that were neither guarded nor diverted are spared. */
  async guard(plan: CapturePlan): Promise<void> {
    const wanted = this.#wanted?.instances
    if (wanted === undefined) return
    const guarded = activeSets().filter(({ kind }) => kind === 'guarded')
    const isNew = new Set<string>()
    for (const { name, family } of guarded) {
      const present = (await this.#read(name)) ?? new Set()
      for (const member of wanted[family])
        if (!present.has(member)) isNew.add(member.replace(',tcp:', ' . '))
    }
    if (isNew.size > 0) await this.#spare(plan, isNew)
    for (const set of guarded) await this.#fill(set, wanted[set.family])
  }

  async #spare(plan: CapturePlan, addresses: ReadonlySet<string>): Promise<void> {
    const spareSeconds = this.#spareSeconds
    if (spareSeconds <= 0) return
    const open = unredirected(await listSockets(this.#run), capturePorts(plan))
    const lines = activeSets()
      .filter(({ kind }) => kind === 'spared')
      .map((set) => {
        const members = open
          .filter(({ family, peer }) => family === set.family && addresses.has(peer))
          .map(({ local, peer }) => sparedMember(local, peer))
        return renderSpare(set, members, spareSeconds)
      })
    await restoreSets(this.#run, lines.join(''))
  }

  /** Makes a set hold exactly these members. */
  async #fill(set: OwnSet, wanted: SetMembers): Promise<void> {
    const { name } = set
    const synced = this.#synced.get(name)
    const isIntact = synced !== undefined && isSameSet(await this.#read(name), synced)
    const update = isIntact ? renderUpdate(name, synced, wanted) : undefined
    if (update === '') return
    this.#synced.delete(name)
    await restoreSets(this.#run, update ?? renderReplace(set, wanted))
    this.#synced.set(name, wanted)
  }

  /** The first set whose content is wrong; undefined when there is none. */
  async drift(): Promise<string | undefined> {
    for (const { name, kind, family } of activeSets()) {
      if (kind === 'spared') continue
      const present = await this.#read(name)
      // A process other than the daemon does not know the addresses; but both sets must be equal.
      const wanted =
        kind === 'intact'
          ? EVERY_ADDRESS[family]
          : (this.#synced.get(name) ??
            (kind === 'guarded' ? await this.#read(setNames.instances[family]) : present))
      if (present !== undefined && wanted !== undefined && isSameSet(present, wanted)) continue
      this.#synced.delete(name)
      return present === undefined
        ? `the set ${name} is missing`
        : `the set ${name} holds other addresses`
    }
    return undefined
  }

  /** Spared connections that are open; a set does not contain the destination port. */
  async spared(): Promise<string[]> {
    const sets = activeSets().filter(({ kind }) => kind === 'spared')
    const members = new Set<string>()
    for (const { name } of sets)
      for (const member of (await this.#read(name)) ?? []) members.add(member)
    if (members.size === 0) return []
    const guarded = await this.guardedAddresses()
    return (await listSockets(this.#run))
      .filter(({ local, peer }) => guarded.has(peer) && members.has(sparedMember(local, peer)))
      .map(({ local, peer }) => `${endText(local)} > ${endText(peer)}`)
  }

  /** Addresses (`ip . port`) that the guard has. */
  async guardedAddresses(): Promise<ReadonlySet<string>> {
    const guarded = new Set<string>()
    for (const { name, kind } of activeSets())
      if (kind === 'guarded')
        for (const member of (await this.#read(name)) ?? [])
          guarded.add(member.replace(',tcp:', ' . '))
    return guarded
  }

  /** Members of a set; undefined when it does not exist. */
  async #read(name: string): Promise<SetMembers | undefined> {
    try {
      const result = await this.#run('ipset', ['save', name])
      if (result.status !== 0) return undefined
      return new Set(
        [...result.stdout.matchAll(/^add \S+ (\S+)/gm)].map(([, member = '']) => member),
      )
    } catch (error) {
      if (errorCode(error) === 'HM_CAPTURE_TOOL_MISSING') return undefined
      throw error
    }
  }

  /** Destroys all our sets. Returns whether there were any. */
  async destroy(notes: string[]): Promise<boolean> {
    this.#synced.clear()
    let removed = false
    await ignoreMissingTool(notes, async () => {
      const listed = await this.#run('ipset', ['list', '-name'])
      if (listed.status !== 0) throw toolError('ipset', 'list the sets', listed)
      const present = new Set(listed.stdout.split('\n'))
      const own = ownSets.flatMap(({ name }) => [nextSetName(name), name])
      for (const name of own) {
        if (!present.has(name)) continue
        await this.#destroySet(name)
        removed = true
      }
    })
    return removed
  }

  async #destroySet(name: string): Promise<void> {
    const deadline = performance.now() + DESTROY_DEADLINE_MS
    for (;;) {
      const result = await this.#run('ipset', ['destroy', name])
      if (result.status === 0 || /does not exist/.test(result.stderr)) return
      if (!/in use/.test(result.stderr) || performance.now() > deadline)
        throw toolError('ipset', `destroy the set ${name}`, result)
      await sleep(DESTROY_RETRY_MS)
    }
  }
}

/** Runs `ipset restore` with this text. @throws MeshError HM_CAPTURE_* */
export async function restoreSets(run: RunCommand, text: string): Promise<void> {
  if (text === '') return
  const result = await run('ipset', ['restore', '-exist'], text)
  if (result.status !== 0) throw toolError('ipset', 'fill the sets', result, text)
}

/** The sets of the families that this host supports. */
export function activeSets(): readonly OwnSet[] {
  const active = activeFamilies()
  return ownSets.filter(({ family }) => active.includes(family))
}

/** Both ends of a connection, `a . 1` and `b . 2`, as a member of a set. */
function sparedMember(local: string, peer: string): string {
  return `${local.replace(' . ', ',tcp:')},${peer.split(' . ')[0]}`
}

function endText(end: string): string {
  const [ip = '', port] = end.split(' . ')
  return formatAddress({ ip, port: Number(port) })
}

/**
 * IPv6 is left out where the kernel has none: no process can open such a socket. It is kept where only loopback has no
 * IPv6 address: native tables always cover both families; here the guard of IPv6 would be missing.
 */
export function activeFamilies(): readonly Family[] {
  return existsSync('/proc/net/if_inet6') ? families : ['v4']
}
