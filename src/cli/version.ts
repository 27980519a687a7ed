/**
 * `hostmesh version`: the version of this program, without a request to the daemon.
 */
import { Command, Option } from 'commander'
import { hostmeshVersion } from '../lib/version.ts'
import { formatAnswer } from './answer.ts'

/** The `version` command. */
export function versionCommand(): Command {
  return new Command('version')
    .description('Print the version of this program')
    .addOption(
      new Option('-o, --output <format>', 'output format')
        .choices(['text', 'json', 'yaml'])
        .default('text'),
    )
    .action(async ({ output }: { output: 'text' | 'json' | 'yaml' }) => {
      const document = { version: hostmeshVersion, node: process.version, arch: process.arch }
      const text = (): string =>
        `hostmesh ${document.version} (Node ${document.node}, ${document.arch})`
      const format = output === 'text' ? 'table' : output
      console.log(await formatAnswer({ document, text }, format, undefined))
    })
}
