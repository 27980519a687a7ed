/**
 * `hostmesh ca serve|token|revoke|rotate|status`: the certificate authority as a service.
 */
import { Command, InvalidArgumentError, Option } from 'commander'
import { type RotationStep, runCommand } from '../authority/control.ts'
import type { CaCatalog } from '../authority/host-services.ts'
import type { CaStatus, RotationStatus } from '../authority/status.ts'
import { parseDuration } from '../lib/duration.ts'
import { MeshError } from '../lib/errors.ts'
import type { LogLevel } from '../lib/log.ts'
import { printLines } from './admin-command.ts'
import { addReadingOptions, type ReadingOptions, show } from './reading-command.ts'
import { formatTime } from './render/format.ts'
import { renderTable, type TableStyle } from './render/table.ts'

interface ServeOptions {
  readonly directory: string
  readonly listen: string
  readonly advertise?: string
  readonly catalogFile?: string
  readonly consulAddress?: string
  readonly consulTokenFile?: string
  readonly consulCaFile?: string
  readonly leafLifetime: number
  readonly hostLifetime: number
  readonly grace: number
  readonly renewWithin: number
  readonly logLevel: LogLevel
}

/** The subcommands; failures are thrown as MeshError. */
export function caServiceCommands(): readonly Command[] {
  return [serveCommand(), tokenCommand(), statusCommand(), revokeCommand(), rotateCommand()]
}

function serveCommand(): Command {
  return new Command('serve')
    .description('Serve a certificate authority to the hosts of a mesh, until SIGTERM or SIGINT')
    .addOption(directoryOption())
    .option('--listen <ip:port>', 'where to listen', '0.0.0.0:15444')
    .option('--advertise <host:port>', 'where hosts reach it; goes into join tokens')
    .option('--catalog-file <file>', 'catalog file that says which host runs which service')
    .addOption(
      new Option(
        '--consul-address <url>',
        'Consul agent that says which host runs which service',
      ).conflicts('catalogFile'),
    )
    .option('--consul-token-file <file>', 'its ACL token: node:read and service:read')
    .option('--consul-ca-file <file>', 'roots for an https address, PEM')
    .addOption(durationOption('--leaf-lifetime <duration>', 'of certificates of services', '24h'))
    .addOption(durationOption('--host-lifetime <duration>', 'of certificates of hosts', '7d'))
    .addOption(
      durationOption('--grace <duration>', 'in which an expired host certificate is renewed', '7d'),
    )
    .addOption(
      durationOption('--renew-within <duration>', 'in which hosts follow a new root', '5m'),
    )
    .addOption(
      new Option('--log-level <level>', 'least severity that is logged')
        .choices(['debug', 'info', 'warn', 'error'])
        .default('info'),
    )
    .action(async (options: ServeOptions) => {
      const { runCaService } = await import('../authority/service.ts')
      await runCaService({
        directory: options.directory,
        listen: options.listen,
        advertise: options.advertise,
        catalog: catalogOf(options),
        lifetimes: {
          leafMs: options.leafLifetime,
          hostMs: options.hostLifetime,
          graceMs: options.grace,
          renewWithinMs: options.renewWithin,
        },
        log: { level: options.logLevel, format: 'json' },
      })
    })
}

function catalogOf(options: ServeOptions): CaCatalog | undefined {
  const { catalogFile, consulAddress, consulTokenFile, consulCaFile } = options
  if (catalogFile !== undefined) return { kind: 'file', path: catalogFile }
  if (consulAddress === undefined) return undefined
  return {
    kind: 'consul',
    address: consulAddress,
    requestTimeout: 5_000,
    ...(consulTokenFile !== undefined && { tokenFile: consulTokenFile }),
    ...(consulCaFile !== undefined && { caFile: consulCaFile }),
  }
}

function tokenCommand(): Command {
  return new Command('token')
    .description('Make a join token for one host: one word, used once, kept secret')
    .addOption(directoryOption())
    .requiredOption('--host <name>', 'name of the host, as its node.name says')
    .option('--service <name...>', 'service it may have a certificate for, beside the catalog', [])
    .option('--datacenter <name>', 'datacenter of the host', 'dc1')
    .addOption(durationOption('--ttl <duration>', 'how long it can be used', '1h'))
    .option('--address <host:port>', "where the host reaches the CA; the server's own unless given")
    .action(
      async (options: {
        directory: string
        host: string
        service: string[]
        datacenter: string
        ttl: number
        address?: string
      }) => {
        const { directory, host, service: services, datacenter, ttl: ttlMs, address } = options
        const request = { host, services, datacenter, ttlMs, address }
        const { token } = await runCommand(directory, { do: 'token', ...request })
        printLines([token])
      },
    )
}

function statusCommand(): Command {
  const command = new Command('status')
    .description('Show hosts, open tokens and roots of a certificate authority')
    .addOption(directoryOption())
  return addReadingOptions(command).action(
    async (options: ReadingOptions & { directory: string }) => {
      await show(options, async () => {
        const status = await runCommand(options.directory, { do: 'status' })
        return { document: status, text: (style) => describeStatus(status, style).join('\n') }
      })
    },
  )
}

function describeStatus(status: CaStatus, style: TableStyle): string[] {
  return [
    `Trust domain   ${status.trustDomain}`,
    `Address        ${status.address ?? 'never served'}`,
    ...status.roots.map(
      ({ id, notAfterMs }) =>
        `Root           ${id.slice(0, 16)}, ends ${formatTime(notAfterMs)}${id === status.activeRoot ? ', signs' : ''}`,
    ),
    `Rotation       ${status.rotation.phase}`,
    `Certificates   ${status.certificates} of hosts not expired, ${status.revoked} of them revoked (those of hostmesh ca issue are not listed)`,
    ...status.openTokens.map(
      ({ host, expiresAtMs }) => `Open token     ${host}, until ${formatTime(expiresAtMs)}`,
    ),
    `Refused joins  ${status.failedEnrollments} since the start`,
    '',
    renderTable(
      ['HOST', 'DATACENTER', 'BY TOKEN', 'CERTIFICATES', 'EXPIRES'],
      status.hosts.map(({ name, datacenter, services, certificates, notAfterMs }) => [
        name,
        datacenter,
        services.join(',') || '-',
        String(certificates),
        formatTime(notAfterMs),
      ]),
      style,
    ),
  ]
}

function revokeCommand(): Command {
  return new Command('revoke')
    .description('Revoke certificates: of a host, of a service, or one by its serial number')
    .addOption(directoryOption())
    .option('--host <name>', 'all of this host, which is no host of the mesh any more')
    .option('--service <name>', 'those of this service only; on all hosts without --host')
    .option('--serial <hex>', 'this certificate')
    .action(
      async (options: { directory: string; host?: string; service?: string; serial?: string }) => {
        const { directory, ...request } = options
        if (Object.keys(request).length === 0)
          throw new MeshError('HM_USAGE_REVOKE', 'Cannot revoke: say what', {
            hint: 'Give --host, --service or --serial',
          })
        const { serials } = await runCommand(directory, { do: 'revoke', ...request })
        printLines([`Revoked ${serials.length} certificates`, ...serials.map((one) => `  ${one}`)])
      },
    )
}

function rotateCommand(): Command {
  const rotate = new Command('rotate').description(
    'Replace the root without an interruption: start, wait, finish',
  )
  const steps: Record<RotationStep, string> = {
    start: 'Add a new root; it signs as soon as every host has it',
    status: 'Show how far every host is',
    finish: 'Remove the old root; refuses while a host needs it',
    abort: 'Go back to the old root',
  }
  for (const step of ['start', 'status', 'finish', 'abort'] as const) {
    const command = new Command(step).description(steps[step]).addOption(directoryOption())
    if (step === 'finish')
      command.option('--force', 'cut off the hosts that are not done: they need a new token')
    addReadingOptions(command, { isRepeatable: step === 'status' }).action(
      async (options: ReadingOptions & { directory: string; force?: boolean }) => {
        await show(options, async () => {
          const force = options.force === true
          const status = await runCommand(options.directory, { do: 'rotate', step, force })
          return { document: status, text: (style) => describeRotation(status, style).join('\n') }
        })
      },
    )
    rotate.addCommand(command)
  }
  return rotate
}

const NEXT: Readonly<Record<RotationStatus['phase'], string>> = {
  none: 'No rotation is going on',
  spreading: 'Hosts learn the new root; the old one signs until all have it',
  reissuing: 'The new root signs; hosts renew their certificates',
}

function describeRotation(status: RotationStatus, style: TableStyle): string[] {
  const { phase, lagging, hosts } = status
  const isReady = phase === 'reissuing' && lagging.length === 0
  return [
    NEXT[phase],
    `Signs          ${status.activeRoot.slice(0, 16)}`,
    ...(status.retiringRoot === null ? [] : [`Retiring root  ${status.retiringRoot.slice(0, 16)}`]),
    ...(phase === 'none'
      ? []
      : [
          isReady
            ? 'All hosts are done: hostmesh ca rotate finish'
            : `Waits for      ${lagging.join(', ') || 'the next look'}`,
        ]),
    '',
    renderTable(
      ['HOST', 'ROOTS', 'OWN CERTIFICATE', 'REISSUED', 'PENDING'],
      hosts.map(({ host, hasRoots, hostRoot, reissued, pending }) => [
        host,
        hasRoots ? 'current' : 'old',
        hostRoot.slice(0, 16),
        reissued.join(',') || '-',
        pending.join(',') || '-',
      ]),
      style,
    ),
  ]
}

function directoryOption(): Option {
  return new Option('--directory <dir>', 'directory of the CA').makeOptionMandatory()
}

/** Minimum duration: with a shorter one nothing could be renewed in time. */
const MIN_DURATION_MS = 1_000

function durationOption(flags: string, meaning: string, defaultText: string): Option {
  return new Option(flags, meaning)
    .argParser((text: string) => {
      const ms = parseDuration(text)
      if (ms === undefined || ms < MIN_DURATION_MS)
        throw new InvalidArgumentError('Must be a duration such as 30s, 24h or 7d, 1s to 365d.')
      return ms
    })
    .default(parseDuration(defaultText), defaultText)
}
