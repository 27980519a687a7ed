/**
 * The capture backends with their operations, and the selection of the one that a host uses.
 *
 *     nftables   TPROXY in a native table: no connection tracking, a guard of its own. Used where the host supports it.
 *     iptables   REDIRECT with iptables and ipset: older hosts, and containers whose bridge calls iptables
 */
import type { Log } from '../../lib/log.ts'
import type { BackendKind } from '../../model/capture-backend.ts'
import type {
  BackendChoice,
  BackendSettings,
  CaptureBackend,
  ChosenBackend,
  MeshAddresses,
} from './backend.ts'
import { createCommandRunner, type RunCommand } from './command.ts'
import { IptablesBackend, previewIptables } from './iptables-backend.ts'
import { applyIptablesGuard, removeIptablesGuard } from './iptables-guard.ts'
import { NftBackend, previewNft } from './nft-backend.ts'
import { applyGuard, removeGuard } from './nft-guard.ts'
import { nftObstacle } from './nft-obstacle.ts'
import type { CapturePlan } from './rules.ts'
import { findCgroupRoot, type ResolvedPlan } from './workloads.ts'

/** One backend. */
interface Backend {
  /** Whether the kernel reports every change that other programs make. */
  readonly hearsChanges: boolean
  create(run: RunCommand, log: Log, settings: BackendSettings): CaptureBackend
  /** The shell commands that would apply a plan on a host that has no rules of ours. */
  preview(resolved: ResolvedPlan, settings: BackendSettings): string
  /** Installs the guard, from a stored plan. */
  applyGuard(
    run: RunCommand,
    resolved: ResolvedPlan,
    given: { readonly settings: BackendSettings; readonly addresses: MeshAddresses },
  ): Promise<void>
  /** Removes only the guard. Returns whether it existed. */
  readonly removeGuard: (run: RunCommand) => Promise<boolean>
}

/** All backends, in the order in which their rules are searched for. */
export const backends: Readonly<Record<BackendKind, Backend>> = {
  nftables: {
    hearsChanges: true,
    create: (run, _log, settings) => new NftBackend(run, settings),
    preview: previewNft,
    applyGuard,
    removeGuard,
  },
  iptables: {
    // The legacy variant of iptables reports no changes.
    hearsChanges: false,
    create: (run, log, settings) => new IptablesBackend(run, log, settings),
    preview: previewIptables,
    applyGuard: applyIptablesGuard,
    removeGuard: removeIptablesGuard,
  },
}

/** Selects the backend for a plan on this host. */
export async function selectBackend(
  choice: BackendChoice,
  { workloads }: Pick<CapturePlan, 'workloads'>,
  run: RunCommand = createCommandRunner(),
): Promise<ChosenBackend> {
  if (choice !== 'auto') return { kind: choice, reason: `capture.backend is ${choice}` }
  const hasContainers = workloads.some(({ selector }) => selector.kind === 'sourceAddress')
  if (hasContainers && (await bridgeCallsIptables(run)))
    return {
      kind: 'iptables',
      reason:
        'a workload is a container (identity.sourceAddress), and net.bridge.bridge-nf-call-iptables is 1: TPROXY does not work behind such a bridge',
    }
  const obstacle = await nftObstacle(run, await findCgroupRoot())
  if (obstacle !== undefined) return { kind: 'iptables', reason: obstacle }
  return { kind: 'nftables', reason: 'nft and the kernel of this host can do it' }
}

async function bridgeCallsIptables(run: RunCommand): Promise<boolean> {
  const { status, stdout } = await run('cat', ['/proc/sys/net/bridge/bridge-nf-call-iptables'])
  return status === 0 && stdout.trim() === '1'
}
