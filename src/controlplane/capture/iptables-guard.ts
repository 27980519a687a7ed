/**
 * Installs and removes the iptables guard alone, without the rules that divert.
 */
import type { BackendSettings, MeshAddresses } from './backend.ts'
import type { RunCommand } from './command.ts'
import { EVERY_ADDRESS, renderCreate, renderReplace, setMembers } from './ipset.ts'
import { applyRules, defaultTools, readRules } from './iptables.ts'
import { iptablesGuard } from './iptables-rules.ts'
import type { SetKind } from './iptables-words.ts'
import { activeFamilies, activeSets, restoreSets } from './kernel-sets.ts'
import { ensureRangeRoute, loopbackFamilies } from './routing.ts'
import { type Family, virtualNetwork } from './rules.ts'
import { isEmpty, ownRules, renderClear, renderRestore } from './saved-rules.ts'
import type { SetMembers } from './set-members.ts'
import type { ResolvedPlan } from './workloads.ts'

/**
 * Installs the guard alone. Its plan may name units that do not run yet: connections to instances from processes that
 * start in the same cgroup folders or below are refused until a daemon applies the plan.
 */
export async function applyIptablesGuard(
  run: RunCommand,
  resolved: ResolvedPlan,
  given: { readonly settings: BackendSettings; readonly addresses: MeshAddresses },
): Promise<void> {
  const { plan, cgroups, problems } = resolved
  const members: Partial<Record<SetKind, Record<Family, SetMembers>>> = {
    guarded: setMembers(given.addresses.instances),
    permitted: setMembers(given.addresses.permitted),
    intact: EVERY_ADDRESS,
  }
  const sets = activeSets().map((set) => {
    const wanted = members[set.kind]?.[set.family]
    return wanted === undefined ? renderCreate(set) : renderReplace(set, wanted)
  })
  await restoreSets(run, sets.join(''))
  const settings = {
    ...given.settings,
    cgroups,
    waits: false,
    // A process in no known cgroup can be a workload only if a unit is missing.
    refusesUnseen: problems.length > 0,
  }
  for (const family of activeFamilies()) {
    const present = ownRules(await readRules(run, defaultTools[family]))
    const filter = present.filter(({ table }) => table === 'filter')
    const wanted = iptablesGuard(plan, family, settings)
    await applyRules(run, defaultTools[family], renderRestore([wanted], filter))
    if (loopbackFamilies().includes(family))
      await ensureRangeRoute(run, family, virtualNetwork(plan, family))
  }
}

/** Removes the guard alone, and keeps the rules that divert. Returns whether it existed. */
export async function removeIptablesGuard(run: RunCommand): Promise<boolean> {
  let removed = false
  for (const family of activeFamilies()) {
    const present = ownRules(await readRules(run, defaultTools[family]))
    const filter = present.filter(({ table }) => table === 'filter')
    if (isEmpty(filter)) continue
    await applyRules(run, defaultTools[family], renderClear(filter))
    removed = true
  }
  return removed
}
