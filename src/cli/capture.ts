/**
 * `hostmesh capture`: see, apply, remove and inspect the iptables rules that divert connections.
 *
 * `clear` needs no configuration and no daemon: it is what uninstallers call last. Unit files call it with
 * `--on-stop`, which leaves the choice between plaintext and no connection to the configuration.
 */
import { Command, Option } from 'commander'
import { loadConfig } from '../config/load.ts'
import type { Config } from '../config/schema.ts'
import {
  applyCapture,
  type CaptureState,
  clearCapture,
  keepsRulesOnStop,
  previewCapture,
  showCapture,
} from '../daemon/capture-operations.ts'

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
      const { text, problems } = await previewCapture(loadConfig(options.config))
      process.stdout.write(text)
      warn(problems)
    })
  command
    .command('apply')
    .description('Apply the rules of a configuration, or none of them')
    .requiredOption('--config <file>', 'configuration file')
    .action(async (options: { config: string }) => {
      warn(await applyCapture(loadConfig(options.config)))
      console.log('Capture rules are in place')
    })
  command
    .command('clear')
    .description('Remove all rules, chains, sets and routes of hostmesh, and nothing else')
    .option('--on-stop', 'as a unit does: keep them where --config has capture.onStop: closed')
    .option('--config <file>', 'configuration file that --on-stop asks')
    .action(async (options: { onStop?: true; config?: string }, clear: Command) => {
      if ((options.onStop === undefined) !== (options.config === undefined))
        clear.error("error: options '--on-stop' and '--config <file>' go together")
      if (options.config !== undefined && keepsRulesOnStop(configOnStop(options.config))) {
        console.log('Capture rules are kept: capture.onStop is closed')
        return
      }
      const { removed, notes } = await clearCapture()
      warn(notes)
      console.log(removed ? 'Capture rules are removed' : 'There were no capture rules')
    })
  command
    .command('show')
    .description('Show the rules in the kernel with what they have caught')
    .option('--config <file>', 'compare with the rules of this configuration')
    .addOption(
      new Option('-o, --output <format>', 'output format')
        .choices(['table', 'json'])
        .default('table'),
    )
    .action(async (options: { config?: string; output: string }) => {
      const config = options.config === undefined ? undefined : loadConfig(options.config)
      const state = await showCapture(config)
      if (options.output === 'json') console.log(JSON.stringify(state, null, 2))
      else for (const line of stateLines(state)) console.log(line)
    })
  return command
}

/** An unreadable configuration keeps the rules: nobody has said that plaintext may leave. */
function configOnStop(path: string): Config {
  try {
    return loadConfig(path)
  } catch (error) {
    warn(['Capture rules, if any, are kept: the configuration cannot say what capture.onStop is'])
    throw error
  }
}

function warn(sentences: readonly string[]): void {
  for (const sentence of sentences) console.error(`hostmesh: ${sentence}`)
}

function stateLines(state: CaptureState): string[] {
  const problems = state.problems.map(({ message }) => message)
  if (!state.present) return ['There are no capture rules', ...problems]
  const rows = state.rules.map(({ family, table, chain, packets, bytes, rule }) => [
    `IP${family}`,
    table,
    chain,
    String(packets),
    String(bytes),
    rule,
  ])
  const { v4 = 0, v6 = 0 } = state.instances
  const sync =
    state.inSync === undefined
      ? []
      : [state.inSync ? 'The rules are as planned' : `Not as planned: ${state.difference}`]
  return [
    ...alignColumns([['FAMILY', 'TABLE', 'CHAIN', 'PACKETS', 'BYTES', 'RULE'], ...rows]),
    '',
    `Instance addresses: ${v4} IPv4, ${v6} IPv6`,
    ...sync,
    ...problems,
  ]
}

function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  )
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  )
}
