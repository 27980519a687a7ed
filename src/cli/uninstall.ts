/**
 * `hostmesh uninstall`: removes hostmesh from this host and reports what it removed. Asks first.
 */
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline/promises'
import { Command } from 'commander'
import { clearCapture } from '../daemon/capture-operations.ts'
import {
  endsWithUnits,
  planUninstall,
  runTool,
  type UninstallPlan,
  uninstall,
} from '../daemon/uninstall.ts'
import { MeshError } from '../lib/errors.ts'
import { daemonPid } from './admin-client.ts'
import { exitCodes } from './failure.ts'

interface Options {
  readonly config: string
  readonly yes?: true
  readonly dryRun?: true
}

/** The `uninstall` command. */
export function uninstallCommand(): Command {
  return new Command('uninstall')
    .description('Remove hostmesh from this host: unit, rules, keys, state, program and user')
    .option('--config <file>', 'configuration that names its files', '/etc/hostmesh/hostmesh.yaml')
    .option('--yes', 'do not ask')
    .option('--dry-run', 'say what would be removed, and remove nothing')
    .action(async (options: Options, command: Command) => {
      const plan = planUninstall({ root: '/', configPath: options.config })
      console.log(planText(plan))
      if (options.dryRun === true) return
      if (process.geteuid?.() !== 0)
        throw new MeshError('HM_UNINSTALL_DENIED', 'Cannot uninstall: only root can', {
          hint: 'sudo hostmesh uninstall',
        })
      await requireStoppable(plan, command.optsWithGlobals<{ addr: string }>().addr)
      if (options.yes !== true && !(await isConfirmed()))
        throw new MeshError('HM_USAGE_UNCONFIRMED', 'Nothing was removed: it was not confirmed', {
          hint: 'Answer yes, or give --yes',
        })
      const { removed, failed } = await uninstall(plan, {
        root: '/',
        configPath: options.config,
        run: runTool,
        clearCapture: removeRules,
      })
      console.log(['', 'Removed:', ...removed.map((line) => `  ${line}`)].join('\n'))
      if (removed.length === 0) console.log('  nothing: there was nothing of hostmesh')
      if (plan.kept.length > 0)
        console.log(['Left:', ...plan.kept.map((line) => `  ${line}`)].join('\n'))
      if (failed.length === 0) return
      console.error(['hostmesh: Not removed:', ...failed.map((line) => `  ${line}`)].join('\n'))
      process.exitCode = exitCodes.failed
    })
}

/** Uninstall stops units; a daemon started by hand would restore its rules, so the user must stop it first. */
async function requireStoppable(plan: UninstallPlan, address: string): Promise<void> {
  const pid = await daemonPid(address)
  if (pid === undefined || endsWithUnits(plan, controlGroupsOf(pid))) return
  throw new MeshError(
    'HM_UNINSTALL_RUNNING',
    `Cannot uninstall: a daemon runs that no unit of hostmesh has started, process ${pid}`,
    { hint: `End it first: kill ${pid}` },
  )
}

/** Empty for a process that has already ended. */
function controlGroupsOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cgroup`, 'utf8')
  } catch {
    return ''
  }
}

async function removeRules(): Promise<readonly string[]> {
  const { removed } = await clearCapture()
  return removed ? ['capture rules'] : []
}

function planText(plan: UninstallPlan): string {
  const lines = [
    ...plan.units.map((unit) => `unit ${unit} (stop and disable)`),
    'capture rules, sets and routes in the kernel',
    ...plan.resolvers.map(({ path, unit }) => `${path} (restart ${unit})`),
    ...plan.paths,
    ...plan.users.map((user) => `user and group ${user}`),
  ]
  const needing = plan.dependents.map((path) => `  ${path}`)
  return [
    'This removes, as far as it is there:',
    ...lines.map((line) => `  ${line}`),
    ...(needing.length === 0
      ? []
      : [
          'Units of others that name a unit of hostmesh: what requires it is stopped, and nothing starts them through it at the next boot:',
          ...needing,
          '  Take hostmesh out of these files, systemctl daemon-reload, and enable and start them again',
        ]),
  ].join('\n')
}

async function isConfirmed(): Promise<boolean> {
  if (!process.stdin.isTTY) return false
  const terminal = createInterface({ input: process.stdin, output: process.stdout })
  try {
    return (await terminal.question('Remove it all? Type yes: ')).trim() === 'yes'
  } finally {
    terminal.close()
  }
}
