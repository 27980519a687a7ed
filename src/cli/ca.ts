/**
 * `hostmesh ca`: hostmesh's own certificate authority, for meshes that do not use Consul's.
 */
import { Command, InvalidArgumentError } from 'commander'
import {
  type AuthorityFacts,
  initCa,
  issueCertificates,
  LEAF_LIFETIME_MS,
  showCa,
} from '../authority/operations.ts'
import { formatDuration, parseDuration } from '../lib/duration.ts'
import { printLines } from './admin-command.ts'
import { caServiceCommands } from './ca-service.ts'
import { formatTime } from './render/format.ts'

/** Minimum lifetime; it leaves time to copy the files to a host. */
const MIN_LIFETIME_MS = 60_000

interface IssueOptions {
  readonly directory: string
  readonly datacenter: string
  readonly service: string[]
  readonly out: string
  readonly lifetime: number
}

/** The command with its subcommands; failures are thrown as MeshError. */
export function caCommand(): Command {
  const ca = new Command('ca').description(
    'The certificate authority of a mesh without Consul: serve it, or issue files by hand',
  )
  ca.command('init')
    .description('Make a certificate authority: ca.pem and ca.key; an existing one is not changed')
    .requiredOption('--directory <dir>', 'directory of the CA; keep it off the hosts of the mesh')
    .requiredOption('--trust-domain <name>', 'name of the mesh, such as mesh.example.com')
    .action((options: { directory: string; trustDomain: string }) => {
      printLines([
        'Made a certificate authority',
        ...describe(initCa(options.directory, options.trustDomain)),
      ])
    })
  ca.command('issue')
    .description('Issue certificates for the services of one host')
    .requiredOption('--directory <dir>', 'directory of the CA')
    .requiredOption('--service <name...>', 'service to issue for; may be given several times')
    .requiredOption(
      '--out <dir>',
      'directory of the host: certificates.directory of its configuration',
    )
    .option('--datacenter <name>', 'datacenter of the host', 'dc1')
    .option(
      '--lifetime <duration>',
      'how long the certificates are valid, such as 72h or 30d',
      parseLifetime,
      LEAF_LIFETIME_MS,
    )
    .action((options: IssueOptions) => {
      const issued = issueCertificates({
        directory: options.directory,
        datacenter: options.datacenter,
        services: options.service,
        out: options.out,
        lifetimeMs: options.lifetime,
      })
      printLines([
        `Issued ${count(issued.leaves.length, 'certificate')}; the host trusts ${count(issued.roots, 'root')} of ${issued.trustDomain}`,
        ...issued.leaves.map(
          (leaf) =>
            `  ${leaf.spiffeId}, expires ${formatTime(leaf.notAfterMs)}, serial ${leaf.serialNumber}`,
        ),
        'Wrote',
        ...issued.paths.map((path) => `  ${path}`),
      ])
    })
  ca.command('show')
    .description('Show a certificate authority')
    .requiredOption('--directory <dir>', 'directory of the CA')
    .action((options: { directory: string }) => {
      printLines([
        `Certificate authority in ${options.directory}`,
        ...describe(showCa(options.directory)),
      ])
    })
  for (const command of caServiceCommands()) ca.addCommand(command)
  return ca
}

function describe(facts: AuthorityFacts): string[] {
  return [
    `  trust domain  ${facts.trustDomain}`,
    `  certificate   ${facts.certificatePath}`,
    `  subject       ${facts.subject}`,
    `  serial        ${facts.serialNumber}`,
    `  sha256        ${facts.fingerprint}`,
    `  valid         ${formatTime(facts.notBeforeMs)} to ${formatTime(facts.notAfterMs)}`,
  ]
}

function parseLifetime(text: string): number {
  const ms = parseDuration(text)
  if (ms === undefined || ms < MIN_LIFETIME_MS)
    throw new InvalidArgumentError(
      `Must be a duration such as 72h or 30d, ${formatDuration(MIN_LIFETIME_MS)} to 365d.`,
    )
  return ms
}

function count(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? '' : 's'}`
}
