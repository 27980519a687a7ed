/**
 * `hostmesh config`: checks a configuration file, shows it with all defaults, prints its JSON schema.
 *
 * An invalid configuration gives exit code 2, with every problem on standard error.
 */
import { Command, Option } from 'commander'
import { stringify } from 'yaml'
import { z } from 'zod'
import { describeConfig } from '../config/describe.ts'
import { checkConfig } from '../config/load.ts'
import { type Config, configSchema } from '../config/schema.ts'
import { hostWarnings } from '../daemon/config-check.ts'
import { exitCodes } from './failure.ts'

/** The `config` command and its subcommands. */
export function configCommand(): Command {
  const command = new Command('config').description('Check, show and describe configuration files')
  command
    .command('validate')
    .description('Check a configuration file: every problem in it, and what this host lacks for it')
    .argument('<file>', 'configuration file')
    .action((file: string) => {
      const config = soundConfig(file)
      if (config === undefined) return
      for (const warning of hostWarnings(config)) console.error(`${file}: warning: ${warning}`)
      console.log(`${file}: valid (${summarize(config)})`)
    })
  command
    .command('show')
    .description('Print a configuration with all defaults filled in and secrets left out')
    .argument('<file>', 'configuration file')
    .addOption(
      new Option('-o, --output <format>', 'output format')
        .choices(['yaml', 'json'])
        .default('yaml'),
    )
    .action((file: string, options: { output: string }) => {
      const config = soundConfig(file)
      if (config === undefined) return
      const shown = describeConfig(config)
      console.log(
        options.output === 'json' ? JSON.stringify(shown, null, 2) : stringify(shown).trimEnd(),
      )
    })
  command
    .command('schema')
    .description('Print the JSON schema of configuration files, for editors')
    .action(() =>
      console.log(JSON.stringify(z.toJSONSchema(configSchema, { io: 'input' }), null, 2)),
    )
  return command
}

function soundConfig(file: string): Config | undefined {
  const checked = checkConfig(file)
  if ('config' in checked) return checked.config
  if (checked.unreadable !== undefined) throw checked.unreadable
  for (const problem of checked.problems) console.error(problem)
  process.exitCode = exitCodes.usage
  return undefined
}

function summarize(config: Config): string {
  const services = config.services.length === 1 ? '1 service' : `${config.services.length} services`
  return `${services}, catalog ${config.catalog.kind}, certificates ${config.certificates.kind}, capture ${config.capture.mode}`
}
