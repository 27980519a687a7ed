/**
 * Operations of `hostmesh capture` and the daemon on a configuration: make the capture plan, show its rules as text,
 * apply, inspect and remove them. Needs no running daemon and no catalog.
 */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { hostIdentity, localServices } from '../config/local-services.ts'
import type { Config } from '../config/schema.ts'
import type { BackendSettings, ChosenBackend } from '../controlplane/capture/backend.ts'
import { backends, selectBackend } from '../controlplane/capture/backends.ts'
import {
  type CaptureOptions,
  type CaptureState,
  type ClearReport,
  createCapture,
} from '../controlplane/capture/capture.ts'
import {
  createCommandRunner,
  ignoreMissingTool,
  type RunCommand,
} from '../controlplane/capture/command.ts'
import { applyPortGuard, removePortGuard } from '../controlplane/capture/port-guard.ts'
import type { GuardedPort, PlainInbound } from '../controlplane/capture/port-rules.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
import { findCgroupRoot, findDaemonUid, resolvePlan } from '../controlplane/capture/workloads.ts'
import { MeshError } from '../lib/errors.ts'
import type { LocalService } from '../model/service.ts'
import { KEPT_CAPTURE, KEPT_PORTS, readKeptCapture, readKeptPorts } from './kept-capture.ts'

export type { CaptureState } from '../controlplane/capture/capture.ts'
export { GUARD_TABLE } from '../controlplane/capture/nft-words.ts'

/** The rules of a configuration as text. */
export interface CapturePreview {
  /** The exact input of the tools on a host without our rules, with a comment before each part. */
  readonly text: string
  /** Workloads that are currently left out, and why. */
  readonly problems: readonly string[]
}

/** What the running daemon reports about itself where the configuration leaves it open. */
export interface KnownDaemon {
  /** The user that it runs as. */
  readonly uid?: number | undefined
  /** Its capture ports, by service ID: the first choice may have been in use. */
  readonly ports?: ReadonlyMap<string, number> | undefined
}

/**
 * The capture plan of a configuration.
 * @throws MeshError HM_CAPTURE_USER_UNKNOWN when `capture.daemonUser` does not exist.
 */
export async function capturePlan(
  config: Config,
  services: readonly LocalService[] = localServices(config),
  run: RunCommand = createCommandRunner(),
  daemonUid?: number,
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
    virtualRange: capture.virtualRange,
    virtualRange6: capture.virtualRange6,
    daemonUid:
      capture.daemonUser === undefined
        ? (daemonUid ?? process.geteuid?.() ?? 0)
        : await findDaemonUid(String(capture.daemonUser), run),
    ownPorts,
  }
}

/** The exact rules that `apply` would make now. Looks up users and cgroups; changes nothing. */
export async function previewCapture(
  config: Config,
  daemon: KnownDaemon = {},
  run: RunCommand = createCommandRunner(),
): Promise<CapturePreview> {
  const plan = await planBeside(config, daemon, run)
  const resolved = await resolvePlan(plan, run, await findCgroupRoot())
  const { kind, reason } = await selectBackend(config.capture.backend, plan, run)
  return {
    text: `# ${kind}: ${reason}\n${backends[kind].preview(resolved, nftSettings(config))}`,
    problems: resolved.problems.map(({ message }) => message),
  }
}

/** The plan that the daemon of this host has or would have. */
function planBeside(
  config: Config,
  { uid, ports = new Map() }: KnownDaemon,
  run: RunCommand,
): Promise<CapturePlan> {
  const services = localServices(config, { bound: ports, isFree: () => true })
  return capturePlan(config, services, run, uid ?? keptDaemonUid(config))
}

/** The user of the daemon that last kept its plan here; undefined when no plan can be read. */
function keptDaemonUid({ state }: Config): number | undefined {
  try {
    return readKeptCapture(join(state.directory, `${KEPT_CAPTURE.name}.json`)).plan.daemonUid
  } catch {
    // No daemon has run here, or this user may not read its file.
    return undefined
  }
}

/** Where callers of other hosts may bypass the mesh, and what happens to their connections. */
export function plainInbound({ capture }: Config, services: readonly LocalService[]): PlainInbound {
  const targets = services.flatMap(({ target }) => (target === undefined ? [] : [target]))
  return { targets, refuses: capture.plainInbound === 'refuse' }
}

/** The ports that a daemon of this host last had; empty when none are known. */
export function earlierPorts({ state }: Config): readonly GuardedPort[] {
  try {
    return readKeptPorts(join(state.directory, `${KEPT_PORTS.name}.json`)).ports
  } catch {
    // No daemon has run here.
    return []
  }
}

/** Settings of native tables that are not in the plan. */
export function nftSettings({ capture }: Config): BackendSettings {
  return {
    mark: capture.mark,
    priority: capture.rulePriority,
    table: capture.routeTable,
    spareSeconds: Math.ceil(capture.spareOpenFor / 1_000),
    sparesWhileUsed: capture.spareOpen === 'keep',
  }
}

/** The capture options of a configuration. */
export function captureOptions(config: Config): Pick<CaptureOptions, 'backend' | 'nft'> {
  return { backend: config.capture.backend, nft: nftSettings(config) }
}

/** The backend that will divert on this host; undefined while capture is off. */
export async function chosenBackend(
  config: Config,
  run: RunCommand = createCommandRunner(),
): Promise<ChosenBackend | undefined> {
  if (config.capture.mode === 'off') return undefined
  const workloads = localServices(config).flatMap(({ selector, capturePort }) =>
    selector === undefined || capturePort === undefined ? [] : [{ selector, capturePort }],
  )
  return selectBackend(config.capture.backend, { workloads }, run)
}

/**
 * Applies the rules of a configuration once; the daemon fills the sets of instances. Returns what could not be
 * captured, one sentence each.
 * @throws MeshError HM_CAPTURE_OFF when capture is off in the configuration.
 */
export async function applyCapture(
  config: Config,
  daemon: KnownDaemon = {},
  run: RunCommand = createCommandRunner(),
): Promise<readonly string[]> {
  if (config.capture.mode === 'off')
    throw new MeshError('HM_CAPTURE_OFF', 'Cannot apply capture rules: capture.mode is off', {
      hint: 'Set capture.mode: on; `hostmesh capture plan` shows what that would do',
    })
  await using capture = createCapture({ run, ...captureOptions(config) })
  await capture.apply(await planBeside(config, daemon, run))
  return capture.problems().map(({ message }) => message)
}

/**
 * Applies the guard from a plan that a daemon kept, and the guard of its ports from the file next to it. Returns what
 * could not be done, one sentence each.
 * @throws MeshError HM_CAPTURE_KEPT_INVALID when there is neither.
 */
export async function guardFromFile(
  path: string,
  run: RunCommand = createCommandRunner(),
): Promise<readonly string[]> {
  const portsPath = join(dirname(path), `${KEPT_PORTS.name}.json`)
  const hasPorts = existsSync(portsPath)
  // A daemon without capture keeps only its ports.
  const notes = hasPorts && !existsSync(path) ? [] : await applyKeptGuard(path, run)
  // After the guard of workloads: a host with an iptables guard may lack the tool that this one needs.
  if (hasPorts) await ignoreMissingTool(notes, () => applyPortGuard(readKeptPorts(portsPath), run))
  return notes
}

async function applyKeptGuard(path: string, run: RunCommand): Promise<string[]> {
  const kept = readKeptCapture(path)
  const resolved = await resolvePlan(kept.plan, run, await findCgroupRoot())
  await backends[kept.backend].applyGuard(run, resolved, kept)
  return resolved.problems.map(({ message }) =>
    message.replace(/^Connections of (.*) are not captured: /, 'Not known yet, $1: '),
  )
}

/** Removes the guard and the guard of the ports, not the diverting rules. Returns whether one existed. */
export async function clearGuard(run: RunCommand = createCommandRunner()): Promise<boolean> {
  let removed = false
  const guards = Object.values(backends).map(({ removeGuard }) => removeGuard)
  for (const remove of [removePortGuard, ...guards])
    await ignoreMissingTool([], async () => {
      if (await remove(run)) removed = true
    })
  return removed
}

/** Removes all our rules from the kernel; needs neither daemon nor configuration. */
export async function clearCapture(run: RunCommand = createCommandRunner()): Promise<ClearReport> {
  await using capture = createCapture({ run })
  const report = await capture.clear()
  let hadPorts = false
  await ignoreMissingTool([], async () => {
    hadPorts = await removePortGuard(run)
  })
  return { ...report, removed: report.removed || hadPorts }
}

/** The rules in the kernel, compared with the configuration if one is given. */
export async function showCapture(
  config: Config | undefined,
  daemon: KnownDaemon = {},
  run: RunCommand = createCommandRunner(),
): Promise<CaptureState> {
  await using capture = createCapture({
    run,
    ...(config !== undefined && captureOptions(config)),
  })
  const plan = config === undefined ? undefined : await planBeside(config, daemon, run)
  return await capture.show(plan)
}
