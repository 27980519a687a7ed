/**
 * The guard of native tables by itself: put in place and removed without what diverts, and as text for a table of another name.
 */
import type { BackendTraits } from '../../model/capture-backend.ts'
import type { BackendSettings, MeshAddresses } from './backend.ts'
import type { RunCommand } from './command.ts'
import { applyNft, readTable } from './nft.ts'
import { membersOf, NUMBERS, nftSettingsOf, presentTable } from './nft-backend.ts'
import { cgroupElements } from './nft-cgroups.ts'
import { type NftElements, renderElements, renderReplacement } from './nft-elements.ts'
import { renderGuardTable } from './nft-guard-rules.ts'
import { GUARD_TABLE } from './nft-words.ts'
import { type CapturePlan, capturePorts, families } from './rules.ts'
import { acceptedAt, listSockets, redirectedAt } from './sockets.ts'
import type { ResolvedPlan } from './workloads.ts'

/**
 * Puts the guard in place alone. Its plan may name units that do not run yet: whatever starts beside or below where they
 * will be is refused at instances until a daemon applies the plan.
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

/** The guard under any name, and what its sets are to hold. */
export function guardOf(
  resolved: ResolvedPlan,
  given: {
    readonly settings: BackendSettings
    readonly addresses: MeshAddresses
    readonly table: string
    /** Who diverts. */
    readonly by?: BackendTraits['divertsBy']
  },
): { readonly text: string; readonly sets: readonly NftElements[] } {
  const { table } = given
  const settings = nftSettingsOf(resolved, given.settings)
  const members = membersOf(given.addresses)
  const addresses = families.flatMap((family) => {
    const n = NUMBERS[family]
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
 * Connections at instance addresses that are captured now, as a guard knows them: those that the daemon's user has accepted. (Its
 * own record may hold hundreds of thousands of closed ones, which takes nft longer to print than a start may last.) After
 * REDIRECT those of containers are not among them: the guard asks tracking.
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
      name: `open${NUMBERS[family]}`,
      elements:
        given.by === 'tproxy'
          ? acceptedAt(sockets, plan.daemonUid, instances)
          : redirectedAt(sockets, capturePorts(plan), instances),
    }
  })
}

/** Removes the guard alone. Returns whether it was there. */
export async function removeGuard(run: RunCommand): Promise<boolean> {
  if ((await readTable(run, GUARD_TABLE)) === undefined) return false
  await applyNft(run, `delete table inet ${GUARD_TABLE}\n`)
  return true
}
