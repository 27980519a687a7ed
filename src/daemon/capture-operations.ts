/**
 * What `hostmesh capture` and the daemon do with a configuration: from it to a capture plan, and the
 * plan's rules as text for people. Needs no running daemon and no catalog.
 */

import { hostIdentity, localServices } from '../config/local-services.ts'
import type { Config } from '../config/schema.ts'
import {
  type CaptureState,
  type ClearReport,
  createCapture,
} from '../controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../controlplane/capture/command.ts'
import { renderCreate } from '../controlplane/capture/ipset.ts'
import { type CapturePlan, captureRules, families } from '../controlplane/capture/rules.ts'
import { renderRestore } from '../controlplane/capture/saved-rules.ts'
import { findCgroupRoot, findDaemonUid, resolvePlan } from '../controlplane/capture/workloads.ts'
import { MeshError } from '../lib/errors.ts'
import type { LocalService } from '../model/service.ts'

export type { CaptureState, ClearReport } from '../controlplane/capture/capture.ts'

/** The rules of a configuration, written out. */
export interface CapturePreview {
  /** Exactly what would be fed to the tools on a host without rules of ours, with a comment before each part. */
  readonly text: string
  /** Workloads that are left out now, and why. */
  readonly problems: readonly string[]
}

/**
 * The capture plan of a configuration.
 * @throws MeshError HM_CAPTURE_USER_UNKNOWN when `capture.daemonUser` does not exist.
 */
export async function capturePlan(
  config: Config,
  services: readonly LocalService[] = localServices(config),
  run: RunCommand = createCommandRunner(),
): Promise<CapturePlan> {
  const { capture, tunnel, metrics } = config
  const workloads = services.flatMap(({ selector, capturePort }) =>
    selector === undefined || capturePort === undefined ? [] : [{ selector, capturePort }],
  )
  const host = hostIdentity(config)
  const defaultCapturePort =
    host && services.find(({ id }) => id === (host.id ?? host.name))?.capturePort
  const ownPorts = [...workloads.map((workload) => workload.capturePort), tunnel.port]
  if (defaultCapturePort !== undefined) ownPorts.push(defaultCapturePort)
  if (metrics.port !== undefined) ownPorts.push(metrics.port)
  return {
    workloads,
    defaultCapturePort,
    refusesUnknownAtInstances: capture.unknownToInstances === 'refuse',
    // Whoever would rather have a cut than a plaintext segment says so with `closed`.
    sparesOpenConnections: capture.onStop === 'open',
    virtualRange: capture.virtualRange,
    virtualRange6: capture.virtualRange6,
    daemonUid:
      capture.daemonUser === undefined
        ? (process.geteuid?.() ?? 0)
        : await findDaemonUid(String(capture.daemonUser), run),
    ownPorts,
  }
}

/** The exact rules that `apply` would make now. Looks users and cgroups up, changes nothing. */
export async function previewCapture(
  config: Config,
  run: RunCommand = createCommandRunner(),
): Promise<CapturePreview> {
  const plan = await capturePlan(config, localServices(config), run)
  const { plan: resolved, problems } = await resolvePlan(plan, run, await findCgroupRoot())
  const sets = families.map(renderCreate).join('')
  const [v4 = '', v6 = ''] = families.map((family) =>
    renderRestore(captureRules(resolved, family), []),
  )
  const text = `# ipset restore -exist\n${sets}\n# iptables-restore --noflush\n${v4}\n# ip6tables-restore --noflush\n${v6}`
  return { text, problems: problems.map(({ message }) => message) }
}

/**
 * Applies the rules of a configuration once; the daemon fills the sets of instances. Returns what could
 * not be captured, one sentence each.
 * @throws MeshError HM_CAPTURE_OFF when the configuration has capture switched off.
 */
export async function applyCapture(
  config: Config,
  run: RunCommand = createCommandRunner(),
): Promise<readonly string[]> {
  if (config.capture.mode === 'off')
    throw new MeshError('HM_CAPTURE_OFF', 'Cannot apply capture rules: capture.mode is off', {
      hint: 'Set capture.mode: on; `hostmesh capture plan` shows what that would do',
    })
  await using capture = createCapture({ run })
  await capture.apply(await capturePlan(config, localServices(config), run))
  return capture.problems().map(({ message }) => message)
}

/** Whether the rules of this configuration stay when its daemon has ended, so that nothing leaves in plaintext. */
export function keepsRulesOnStop({ capture }: Config): boolean {
  return capture.mode === 'on' && capture.onStop === 'closed'
}

/** Removes everything of ours from the kernel; needs neither daemon nor configuration. */
export async function clearCapture(run: RunCommand = createCommandRunner()): Promise<ClearReport> {
  await using capture = createCapture({ run })
  return await capture.clear()
}

/** What is in the kernel now, compared with the configuration if there is one. */
export async function showCapture(
  config: Config | undefined,
  run: RunCommand = createCommandRunner(),
): Promise<CaptureState> {
  await using capture = createCapture({ run })
  const plan =
    config === undefined ? undefined : await capturePlan(config, localServices(config), run)
  return await capture.show(plan)
}
