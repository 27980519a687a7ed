/**
 * `hostmesh capture`: shows, applies, removes and inspects the rules that divert connections.
 *
 * `clear` needs no configuration and no daemon: uninstallers call it last. `guard` is for a boot unit: it refuses
 * connections that no daemon carries yet, by the plan that the daemon kept when it ran.
 */
import { stat } from 'node:fs/promises'
import { Command } from 'commander'
import { loadConfig } from '../config/load.ts'
import type { Config } from '../config/schema.ts'
import {
  applyCapture,
  type CaptureState,
  clearCapture,
  clearGuard,
  GUARD_TABLE,
  guardFromFile,
  type KnownDaemon,
  previewCapture,
  showCapture,
} from '../daemon/capture-operations.ts'
import type { ServicesDocument } from '../model/admin.ts'
import { backendTraits } from '../model/capture-backend.ts'
import { daemonPid, fetchDocument } from './admin-client.ts'
import { addReadingOptions, type ReadingOptions, show } from './reading-command.ts'
import { plainStyle, renderTable, type TableStyle } from './render/table.ts'

/** The `capture` command and its subcommands. */
export function captureCommand(): Command {
  const command = new Command('capture').description(
    'See, apply, remove and inspect the rules that divert connections into the mesh',
  )
  command
    .command('plan')
    .description('Print the exact rules of a configuration and change nothing')
    .requiredOption('--config <file>', 'configuration file')
    .action(async (options: { config: string }) => {
      const { text, problems } = await withDaemon(options.config, previewCapture)
      process.stdout.write(text)
      warn(problems)
    })
  command
    .command('apply')
    .description('Apply the rules of a configuration, or none of them')
    .requiredOption('--config <file>', 'configuration file')
    .action(async (options: { config: string }) => {
      warn(await withDaemon(options.config, applyCapture))
      console.log('Capture rules are in place')
    })
  command
    .command('clear')
    .description('Remove all rules, chains, sets and routes of hostmesh, and nothing else')
    .action(async (_options: unknown, clear: Command) => {
      const { removed, notes } = await clearCapture()
      warn(notes)
      await warnOfDaemon(clear)
      console.log(removed ? 'Capture rules are removed' : 'There were no capture rules')
    })
  addReadingOptions(
    command
      .command('show')
      .description(
        'Show the rules in the kernel and how many connections they have refused and passed',
      )
      .option('--config <file>', 'compare with the rules of this configuration'),
  ).action(async (options: ReadingOptions & { config?: string }) => {
    await show(options, async () => {
      const state =
        options.config === undefined
          ? await showCapture(undefined)
          : await withDaemon(options.config, showCapture)
      return { document: state, text: (style) => stateLines(state, style).join('\n') }
    })
  })
  command.addCommand(guardCommand())
  return command
}

function guardCommand(): Command {
  const guard = new Command('guard').description(
    'Only the rules that refuse connections in plaintext to the mesh: for a host without a daemon',
  )
  guard
    .command('apply')
    .description('Refuse the connections that a stored plan captures, until a daemon diverts them')
    .requiredOption(
      '--from <file>',
      'plan that a daemon stored (capture.json in its state directory)',
    )
    .action(async (options: { from: string }) => {
      warn(await guardFromFile(options.from))
      console.log('The guard is in place')
    })
  guard
    .command('clear')
    .description('Remove the guard, but not the diverting rules')
    .action(async (_options: unknown, clear: Command) => {
      const isRemoved = await clearGuard()
      await warnOfDaemon(clear)
      console.log(isRemoved ? 'The guard is removed' : 'There was no guard')
    })
  guard
    .command('show')
    .description('Show the guard and its count of refusals')
    .action(async () => {
      const { rules, counts } = await showCapture(undefined)
      // The iptables guard is what we have in its filter table.
      const own = rules.filter(({ table }) => table === GUARD_TABLE || table === 'filter')
      console.log(own.length === 0 ? 'There is no guard' : ruleTable(own, plainStyle))
      const isIptables = own.some(({ table }) => table === 'filter')
      const atVirtual = isIptables ? counts.refusedVirtual : 0
      if (own.length > 0) console.log(`Refused: ${(counts.guarded ?? 0) + atVirtual}`)
    })
  return guard
}

/** Warns that a running daemon restores what is removed. */
async function warnOfDaemon(command: Command): Promise<void> {
  const pid = await daemonPid(command.optsWithGlobals<{ addr: string }>().addr)
  if (pid !== undefined)
    warn([`A daemon runs, process ${pid}: what it captures it puts back. Stop it first`])
}

/** Runs an operation with a configuration and with the running daemon's report about itself. */
async function withDaemon<T>(
  file: string,
  operation: (config: Config, daemon: KnownDaemon) => Promise<T>,
): Promise<T> {
  const config = loadConfig(file)
  return operation(config, await askDaemon(config.admin.socket))
}

/** The user and ports of the running daemon; empty when none answers. */
async function askDaemon(socket: string): Promise<KnownDaemon> {
  try {
    const { local } = await fetchDocument(`unix://${socket}`, '/v1/services', isServices)
    const ports = local.flatMap(({ id, capturePort }): [string, number][] =>
      capturePort === null ? [] : [[id, capturePort]],
    )
    // The daemon made the socket, so the owner is its user.
    return { uid: (await stat(socket)).uid, ports: new Map(ports) }
  } catch {
    return {}
  }
}

function isServices(value: unknown): value is ServicesDocument {
  return typeof value === 'object' && value !== null && 'local' in value
}

function warn(sentences: readonly string[]): void {
  for (const sentence of sentences) console.error(`hostmesh: ${sentence}`)
}

function stateLines(state: CaptureState, style: TableStyle): string[] {
  const problems = state.problems.map(({ message }) => message)
  if (!state.present) return ['There are no capture rules', ...problems]
  const { counts, backend } = state
  const { v4 = 0, v6 = 0 } = state.instances
  const sync =
    state.inSync === undefined
      ? []
      : [state.inSync ? 'The rules are as planned' : `Not as planned: ${state.difference}`]
  const count = (value: number | undefined, what: string): string[] =>
    value === undefined ? [] : [`${what}: ${value}`]
  return [
    ruleTable(state.rules, style),
    '',
    ...(backend === undefined ? [] : [`Diverted by ${backend.kind}: ${backend.reason}`]),
    ...(backend !== undefined && backendTraits[backend.kind].limits !== undefined
      ? ['What that cannot do: docs/capture.md, "What stays"']
      : []),
    `Instance addresses: ${v4} IPv4, ${v6} IPv6`,
    `Refused callers without identity: ${counts.refusedVirtual} at virtual addresses, ${counts.refusedInstance} at instances`,
    ...count(counts.permitted, 'Passed without the mesh (capture.permissive)'),
    ...count(counts.waited, 'Kept waiting because they had just started'),
    ...count(counts.full, 'Refused because too many connections were open'),
    ...count(counts.guarded, 'Refused by the guard'),
    ...count(counts.spared, 'Spared, open since before capture'),
    ...state.spared.map((connection) => `  ${connection}`),
    ...sync,
    ...problems,
  ]
}

function ruleTable(rules: CaptureState['rules'], style: TableStyle): string {
  // Counts by name, not by rule, are printed below the table.
  const isCounted = rules.some(({ packets }) => packets !== null)
  const rows = rules.map(({ family, table, chain, packets, bytes, rule }) => [
    family === 'inet' ? 'both' : `IP${family}`,
    table,
    chain,
    ...(isCounted ? [String(packets ?? '-'), String(bytes ?? '-')] : []),
    rule,
  ])
  const counted = isCounted ? ['PACKETS', 'BYTES'] : []
  return renderTable(['FAMILY', 'TABLE', 'CHAIN', ...counted, 'RULE'], rows, style)
}
