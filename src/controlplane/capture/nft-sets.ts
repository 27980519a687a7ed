/**
 * The sets of native tables: which addresses they must hold, and the connections that packets have added to them.
 *
 * The address of a new instance is announced first (`coming`), so that connections that are open to it are listed without
 * a gap; the address of a removed instance stays `known` until no connection to it is open.
 */
import { ownAddresses } from '../../lib/own-addresses.ts'
import { recordOf } from '../../lib/record.ts'
import { canonicalIp } from '../../model/address.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import type { MeshAddresses } from './backend.ts'
import type { RunCommand } from './command.ts'
import { applyNft, readSets, setKey } from './nft.ts'
import { changeLines, instanceElement } from './nft-elements.ts'
import { CAPTURE_TABLE, GUARD_SETS, GUARD_TABLE, words } from './nft-words.ts'
import { type CapturePlan, type Family, families, virtualNetwork } from './rules.ts'
import { isSameSet, membersByFamily, type SetMembers } from './set-members.ts'
import {
  abandoned,
  acceptedAt,
  destroySockets,
  listSockets,
  type SocketEnds,
  uncaptured,
} from './sockets.ts'

/** Both tables. */
const TABLES = [GUARD_TABLE, CAPTURE_TABLE] as const

/** Sets in both tables whose elements the daemon decides. */
const STATIC_SETS = TABLES.flatMap((table) =>
  GUARD_SETS.flatMap((name) => inBothFamilies(name).map((set) => ({ table, name: set }))),
)

/** The members of one family's sets. */
interface Members {
  readonly instances: SetMembers
  readonly permitted: SetMembers
}

/** Members of sets, by {@link setKey}; a set that does not exist is left out. */
type Content = ReadonlyMap<string, SetMembers>

/** The sets of both tables. */
export class NftSets {
  readonly #run: RunCommand
  #wanted: Record<Family, Members> | undefined
  /** The content of {@link STATIC_SETS}, as far as this process knows. */
  #held: Content | undefined

  constructor(run: RunCommand) {
    this.#run = run
  }

  /** Sets the wanted addresses; {@link fill} applies them. @throws as {@link membersByFamily} */
  want(addresses: MeshAddresses): void {
    this.#wanted = membersOf(addresses)
  }

  /** The sets may hold anything: the next operation reads them. */
  forget(): void {
    this.#held = undefined
  }

  /** Wanted instances, by IP address only. */
  instanceIps(): ReadonlySet<string> {
    const elements = families.flatMap((family) => [...(this.#wanted?.[family].instances ?? [])])
    return new Set(elements.map((element) => element.split(' . ')[0] ?? ''))
  }

  /** Number of addresses that are diverted; undefined when there is no such set. */
  async instanceCounts(): Promise<Record<Family, number | undefined>> {
    const held = await this.#read()
    return recordOf(families, (family) => membersIn(held, CAPTURE_TABLE, 'instances', family)?.size)
  }

  /** Connections (`a . 1 . b . 2`) from before capture that are spared. */
  async spared(): Promise<readonly string[]> {
    return this.#elementsOf('spared', [CAPTURE_TABLE])
  }

  /** Captured connections (`a . 1 . b . 2`) that are open, by the records of these tables. */
  async captured(tables: readonly string[]): Promise<readonly string[]> {
    const known = new Set(await this.#elementsOf('known', tables))
    const candidates = (await listSockets(this.#run)).filter(({ peer }) => known.has(peer))
    if (candidates.length === 0) return []
    const open = new Set(await this.#elementsOf('open', tables))
    return candidates
      .map(({ local, peer }) => `${local} . ${peer}`)
      .filter((tuple) => open.has(tuple))
  }

  /** Makes the sets hold what is wanted; connections that are open to a new address are spared. */
  async fill(): Promise<void> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    const present = this.#held ?? (await this.#read())
    const held = new Map(present)
    const announced: string[] = []
    const changes: string[] = []
    const added = new Set<string>()
    const change = (table: string, name: string, to: SetMembers, keeps: boolean): string[] => {
      const key = setKey({ table, name })
      const now = present.get(key) ?? new Set()
      const more = [...to].filter((element) => !now.has(element))
      const less = keeps ? [] : [...now].filter((element) => !to.has(element))
      changes.push(
        ...changeLines('add', table, name, more),
        ...changeLines('delete', table, name, less),
      )
      held.set(key, keeps ? new Set([...now, ...to]) : to)
      return more
    }
    for (const family of families) {
      const { n } = words(family)
      const { instances, permitted } = wanted[family]
      for (const table of TABLES) {
        change(table, `known${n}`, instances, true)
        change(table, `permitted${n}`, permitted, false)
        const more = change(table, `instances${n}`, instances, false)
        if (table !== CAPTURE_TABLE || more.length === 0) continue
        announced.push(...changeLines('add', table, `coming${n}`, more))
        changes.push(`flush set inet ${table} coming${n}\n`)
        for (const element of more) added.add(element)
      }
    }
    this.#held = undefined
    if (changes.length > 0) {
      await applyNft(this.#run, announced.join(''))
      await applyNft(this.#run, (await this.#sparing(added)).join('') + changes.join(''))
    }
    this.#held = held
  }

  /**
   * Adds the connections that are captured already to new tables. Otherwise their callers' later segments would be
   * judged by the owner of the socket, and a socket that its process has closed has no owner.
   */
  async recall(plan: CapturePlan): Promise<void> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    const sockets = await listSockets(this.#run)
    const lines = families.flatMap((family) => {
      const tuples = acceptedAt(sockets, plan.daemonUid, wanted[family].instances)
      return inBothTables('add', `open${words(family).n}`, tuples)
    })
    await applyNft(this.#run, lines.join(''))
    await this.#endAbandoned(sockets, plan)
  }

  /** The first set of addresses whose content is wrong, in words; undefined when there is none. */
  async drift(): Promise<string | undefined> {
    const present = await this.#read()
    this.#held = present
    for (const family of families) {
      const of = (table: string, name: string): SetMembers | undefined =>
        membersIn(present, table, name, family)
      // A process other than the daemon does not know the addresses; but both tables must be equal.
      const { instances, permitted } = this.#wanted?.[family] ?? {
        instances: of(GUARD_TABLE, 'instances') ?? new Set(),
        permitted: of(GUARD_TABLE, 'permitted') ?? new Set(),
      }
      for (const table of [CAPTURE_TABLE, GUARD_TABLE]) {
        const known = of(table, 'known')
        const isHeld =
          isSameSet(of(table, 'instances'), instances) &&
          isSameSet(of(table, 'permitted'), permitted) &&
          [...instances].every((element) => known?.has(element) === true)
        if (!isHeld) return `a set of addresses of table ${table} (IP${family}) holds others`
      }
    }
    return undefined
  }

  /** Removes addresses of removed instances from `known`, once no connection to them is open. */
  async removeExpired(): Promise<undefined> {
    const wanted = this.#wanted
    if (wanted === undefined) return
    const present = this.#held ?? (await this.#read())
    const leaving = families.flatMap((family) =>
      [...(membersIn(present, CAPTURE_TABLE, 'known', family) ?? [])]
        .filter((element) => !wanted[family].instances.has(element))
        .map((element) => ({ family, element })),
    )
    if (leaving.length === 0) return
    const peers = new Set((await listSockets(this.#run)).map(({ peer }) => peer))
    const lines = leaving
      .filter(({ element }) => !peers.has(element))
      .flatMap(({ family, element }) =>
        inBothTables('delete', `known${words(family).n}`, [element]),
      )
    if (lines.length === 0) return
    this.#held = undefined
    await applyNft(this.#run, lines.join(''))
  }

  async #read(): Promise<Content> {
    const held = await readSets(this.#run, STATIC_SETS)
    return new Map([...held].map(([key, elements]) => [key, new Set(elements)]))
  }

  /** Elements of the sets of both families with this name. */
  async #elementsOf(name: string, tables: readonly string[]): Promise<readonly string[]> {
    const sets = tables.flatMap((table) =>
      inBothFamilies(name).map((set) => ({ table, name: set })),
    )
    return [...(await readSets(this.#run, sets)).values()].flat()
  }

  /** Lines that spare open connections to these addresses that are not captured. */
  async #sparing(addresses: ReadonlySet<string>): Promise<string[]> {
    if (addresses.size === 0) return []
    const open = uncaptured(await listSockets(this.#run))
    return families.flatMap((family) =>
      changeLines(
        'add',
        CAPTURE_TABLE,
        `spared${words(family).n}`,
        open
          .filter((socket) => socket.family === family && addresses.has(socket.peer))
          .map(({ local, peer }) => `${local} . ${peer}`),
      ),
    )
  }

  /** Ends connections whose caller's last packets were lost while nothing was diverted: keepalive takes a minute. */
  async #endAbandoned(before: readonly SocketEnds[], plan: CapturePlan): Promise<void> {
    const own = new Set([...ownAddresses()].flatMap((ip) => canonicalIp(ip) ?? []))
    const ranges = families.flatMap((family) => parseCidr(virtualNetwork(plan, family)) ?? [])
    const isMesh = (end: string): boolean =>
      families.some((family) => this.#wanted?.[family].instances.has(end) === true) ||
      ranges.some((range) => cidrContains(range, end.split(' . ')[0] ?? ''))
    const suspects = abandoned(before, plan.daemonUid, { own, isMesh })
    if (suspects.length === 0) return
    // A listing is not a snapshot: it may lack one end of a connection that began meanwhile.
    const still = new Set(abandoned(await listSockets(this.#run), plan.daemonUid, { own, isMesh }))
    await destroySockets(
      this.#run,
      suspects.filter((tuple) => still.has(tuple)),
    )
  }
}

/** The elements of sets, by family. @throws as {@link membersByFamily} */
export function membersOf({ instances, permitted }: MeshAddresses): Record<Family, Members> {
  const all = {
    instances: membersByFamily(instances, instanceElement),
    permitted: membersByFamily(permitted, instanceElement),
  }
  return recordOf(families, (family) => ({
    instances: all.instances[family],
    permitted: all.permitted[family],
  }))
}

function inBothFamilies(name: string): readonly string[] {
  return families.map((family) => `${name}${words(family).n}`)
}

function inBothTables(
  verb: 'add' | 'delete',
  name: string,
  elements: readonly string[],
): readonly string[] {
  return TABLES.flatMap((table) => changeLines(verb, table, name, elements))
}

function membersIn(
  content: Content,
  table: string,
  name: string,
  family: Family,
): SetMembers | undefined {
  return content.get(setKey({ table, name: `${name}${words(family).n}` }))
}
