/**
 * `hostmesh run`: the daemon of this host, in the foreground, until it is stopped.
 */
import { Command } from 'commander'

/** The `run` command. */
export function runCommand(): Command {
  return new Command('run')
    .description('Run the daemon of this host until SIGTERM or SIGINT')
    .requiredOption('--config <file>', 'configuration file')
    .action(async ({ config }: { config: string }) => {
      // Imported only here: the daemon's code takes five times as long to load as all other code.
      const { runDaemon } = await import('../daemon/app.ts')
      await runDaemon(config)
    })
}
