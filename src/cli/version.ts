/**
 * `hostmesh version`: the version of this program, without a request to the daemon.
 */
import { Command, Option } from 'commander'
import { hostmeshVersion } from '../lib/version.ts'
import { printJson } from './admin-command.ts'

/** The `version` command. */
export function versionCommand(): Command {
  return new Command('version')
    .description('Print the version of this program')
    .addOption(
      new Option('-o, --output <format>', 'output format')
        .choices(['text', 'json'])
        .default('text'),
    )
    .action(({ output }: { output: string }) => {
      const version = { version: hostmeshVersion, node: process.version, arch: process.arch }
      if (output === 'json') printJson(version)
      else console.log(`hostmesh ${version.version} (Node ${version.node}, ${version.arch})`)
    })
}
