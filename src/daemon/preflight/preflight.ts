/**
 * `hostmesh check --pre`: whether a daemon with this configuration would serve on this machine. Changes nothing.
 */
import { checkConfig } from '../../config/load.ts'
import { createCommandRunner, type RunCommand } from '../../controlplane/capture/command.ts'
import { hostWarnings } from '../config-check.ts'
import { type Check, fail, ok, warn } from './check.ts'
import { checkClock, checkKernel, checkNode, checkPorts, checkState } from './host-checks.ts'
import { checkCertificates, checkConsul } from './source-checks.ts'

/** What differs in tests. */
export interface PreflightOptions {
  readonly nowMs?: number
  readonly nodeVersion?: string
  readonly run?: RunCommand
  /** Whether a daemon answers at a socket: then it has the ports. */
  readonly isDaemonAt: (socket: string) => Promise<boolean>
}

/** All checks, in the order in which a start needs them. */
export async function preflight(
  path: string,
  {
    nowMs = Date.now(),
    nodeVersion = process.version,
    run = createCommandRunner(),
    isDaemonAt,
  }: PreflightOptions,
): Promise<Check[]> {
  const node = checkNode(nodeVersion)
  const clock = await checkClock(nowMs, run)
  const checked = checkConfig(path)
  if (!('config' in checked)) {
    const next = checked.unreadable?.hint ?? 'See docs/configuration.md'
    return [node, clock, ...checked.problems.map((problem) => fail('configuration', problem, next))]
  }
  const { config } = checked
  const warnings = hostWarnings(config)
  const ports = (await isDaemonAt(config.admin.socket))
    ? [
        warn(
          'ports',
          'Not checked: the daemon of this host runs and has them',
          'Ask it instead: hostmesh check',
        ),
      ]
    : await checkPorts(config)
  return [
    node,
    clock,
    ok('configuration', `${path} is valid`),
    ...warnings.map((text) => warn('configuration', text, 'Correct it before the daemon starts')),
    ...(await checkKernel(config, run)),
    ...ports,
    checkState(config),
    ...(await checkConsul(config, nowMs)),
    ...(await checkCertificates(config, nowMs)),
  ]
}
