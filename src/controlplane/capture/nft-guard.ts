/**
 * Installs and removes the native guard without the rules that divert; also renders it for a table of another name.
 */
import type { BackendTraits } from '../../model/capture-backend.ts'
import type { BackendSettings, MeshAddresses } from './backend.ts'
import type { RunCommand } from './command.ts'
import { applyNft, presentTable, readTable } from './nft.ts'
import { nftSettingsOf } from './nft-backend.ts'
import { cgroupElements } from './nft-cgroups.ts'
import { type NftElements, renderElements, renderReplacement } from './nft-elements.ts'
import { renderGuardTable } from './nft-guard-rules.ts'
import { membersOf } from './nft-sets.ts'
import { GUARD_TABLE, words } from './nft-words.ts'
import { type CapturePlan, capturePorts, families } from './rules.ts'
import { acceptedAt, listSockets, redirectedAt } from './sockets.ts'
import type { ResolvedPlan } from './workloads.ts'

/**
 * Installs the guard alone. Its plan may name units that do not run yet: connections to instances from processes that
 * start in the same cgroup folders or below are refused until a daemon applies the plan.
 */
export async function applyGuard(
  run: RunCommand,
  resolved: ResolvedPlan,
  given: {
    readonly settings: BackendSettings
    readonly addresses: MeshAddresses
  },
): Promise<void> {
  const { text, sets } = guardOf(resolved, { ...given, table: GUARD_TABLE })
  const present = await presentTable(run, GUARD_TABLE)
  await applyNft(run, renderReplacement(GUARD_TABLE, text, present) + renderElements(sets))
}

/** The guard's text under any table name, and the elements of its sets. */
export function guardOf(
  resolved: ResolvedPlan,
  given: {
    readonly settings: BackendSettings
    readonly addresses: MeshAddresses
    readonly table: string
    /** The backend's way to divert. */
    readonly by?: BackendTraits['divertsBy']
  },
): { readonly text: string; readonly sets: readonly NftElements[] } {
  const { table } = given
  const settings = nftSettingsOf(resolved, given.settings)
  const members = membersOf(given.addresses)
  const addresses = families.flatMap((family) => {
    const { n } = words(family)
    const { instances, permitted } = members[family]
    return [
      { name: `instances${n}`, elements: [...instances] },
      { name: `known${n}`, elements: [...instances] },
      { name: `permitted${n}`, elements: [...permitted] },
    ].map((set) => ({ ...set, table, kind: 'set' as const }))
  })
  const units = cgroupElements(resolved.plan, settings)
    .filter((set) => set.table === GUARD_TABLE)
    .map((set) => ({ ...set, table }))
  return {
    text: renderGuardTable(resolved.plan, settings, table, given.by),
    sets: [...units, ...addresses],
  }
}

/**
 * Captured connections at instance addresses, as a guard records them: those that the daemon's user has accepted. (The
 * guard's own record may have hundreds of thousands of closed ones, and printing them takes nft longer than a start may
 * last.) After REDIRECT those of containers are not included: the guard asks connection tracking.
 */
export async function readCaptured(
  run: RunCommand,
  plan: CapturePlan,
  given: { readonly addresses: MeshAddresses; readonly by: BackendTraits['divertsBy'] },
): Promise<readonly NftElements[]> {
  const sockets = await listSockets(run)
  const members = membersOf(given.addresses)
  return families.map((family) => {
    const { instances } = members[family]
    return {
      table: GUARD_TABLE,
      kind: 'set',
      name: `open${words(family).n}`,
      elements:
        given.by === 'tproxy'
          ? acceptedAt(sockets, plan.daemonUid, instances)
          : redirectedAt(sockets, capturePorts(plan), instances),
    }
  })
}

/** Removes only the guard. Returns whether it existed. */
export async function removeGuard(run: RunCommand): Promise<boolean> {
  if ((await readTable(run, GUARD_TABLE)) === undefined) return false
  await applyNft(run, `delete table inet ${GUARD_TABLE}\n`)
  return true
}
