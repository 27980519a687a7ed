/**
 * The configuration file: every key with its type, default and meaning; the larger sections have files of their own.
 * The JSON schema, the error messages and docs/configuration.md are made from it.
 *
 * Strict: an unknown key is an error. Durations are text with a unit (`5s`, `200ms`, `1h30m`) and become milliseconds.
 * The parsed value is the daemon's {@link Config}. Rules that involve several keys are in validate.ts.
 */
import { z } from 'zod'
import { REPORTER_SERVICE } from '../model/report.ts'
import { accessLogSection } from './access-log-section.ts'
import { captureSection } from './capture-section.ts'
import { metricsSection } from './metrics-section.ts'
import { service } from './service-section.ts'
import { catalogSection, certificatesSection } from './source-sections.ts'
import { duration, ip, path, port, serviceName } from './values.ts'

/** The whole file. */
export const configSchema = z.strictObject({
  node: z
    .strictObject({
      name: z
        .string()
        .regex(/^[A-Za-z0-9._-]{1,128}$/, 'Must be 1 to 128 of A-Z a-z 0-9 . _ -')
        .optional()
        .describe("Name of this host; the machine's host name unless given"),
      address: ip
        .optional()
        .describe(
          "Address under which Consul lists this host's proxies; the agent's own unless given",
        ),
      zone: z
        .string()
        .regex(/^[A-Za-z0-9._-]{1,64}$/, 'Must be 1 to 64 of A-Z a-z 0-9 . _ -')
        .optional()
        .describe('Where the host is (rack, zone, room): aggregators group by it'),
    })
    .prefault({}),
  datacenter: z
    .string()
    .regex(/^[a-z0-9_-]{1,64}$/, 'Must be a Consul datacenter name: a-z 0-9 _ -')
    .default('dc1')
    .describe('Consul datacenter of this host; part of every identity'),
  catalog: catalogSection,
  certificates: certificatesSection,
  services: z.array(service).max(1000).default([]).describe('The services of this host'),
  intentions: z
    .strictObject({
      default: z
        .enum(['catalog', 'deny'])
        .default('catalog')
        .describe(
          'Where no intention matches: what the catalog says (for Consul its ACL default; allow with ACLs off), or `deny` whatever it says',
        ),
    })
    .prefault({}),
  capture: captureSection,
  dns: z
    .strictObject({
      mode: z
        .enum(['off', 'on'])
        .optional()
        .describe(
          '`on` answers for the names of mesh services (docs/dns.md); `on` when capture is on unless given, else `off`',
        ),
      address: ip
        .default('127.0.0.1')
        .describe('Address where questions are taken; anyone who reaches it may ask'),
      port: port.default(15_053).describe('Port where questions are taken, UDP and TCP'),
      ttl: duration('30s', 'How long callers may keep an answer, in whole seconds', 1_000),
    })
    .prefault({}),
  tunnel: z
    .strictObject({
      port: port.default(15_443).describe('Port where other hosts reach this one'),
      address: ip.default('::').describe('Address of the tunnel port'),
      inboundMinVersion: z
        .enum(['1.2', '1.3'])
        .default('1.2')
        .describe('Least TLS version taken from Connect sidecars; hostmesh hosts always use 1.3'),
      maxSegment: z
        .int()
        .min(256)
        .max(9_000)
        .optional()
        .describe(
          'Most bytes of one TCP segment of a tunnel to this host, either way: for a path that takes less than its interfaces say and tells nobody',
        ),
    })
    .prefault({}),
  state: z
    .strictObject({
      directory: path
        .default('/var/lib/hostmesh')
        .describe(
          'What outlives a restart: the last good answers of Consul or the last good catalog file, where instances listened, certificates with their keys, virtual addresses',
        ),
      maxStale: duration(
        '1h',
        'Older answers are called stale in status; they are used all the same',
      ),
    })
    .prefault({}),
  workers: z.int().min(1).max(64).default(1).describe('Data-plane threads'),
  admin: z
    .strictObject({
      socket: path.default('/run/hostmesh/admin.sock').describe('Unix socket of the admin API'),
      group: z.string().optional().describe('Group that may use the socket beside root'),
    })
    .prefault({}),
  metrics: metricsSection,
  reports: z
    .strictObject({
      to: z
        .array(serviceName)
        .max(8)
        .default([])
        .describe(
          'Services of aggregators (docs/observability.md) to which this host reports, each for itself; to none unless given',
        ),
      as: serviceName
        .default(REPORTER_SERVICE)
        .describe('Service as which this host reports: its name in intentions and its certificate'),
      keep: duration(
        '1h',
        'How long reports are kept one by one while an aggregator takes none; older ones are summed up',
        60_000,
      ),
    })
    .prefault({}),
  timeouts: z
    .strictObject({
      connect: duration('5s', 'To reach an instance, all tries together bounded by twice this'),
      handshake: duration('5s', 'TLS handshake and first stream message of a peer'),
      idle: duration('1h', 'A connection on which nothing moves in either direction is closed'),
      halfClosed: duration('5m', 'A half-closed connection on which nothing moves is closed'),
      tunnelIdle: duration('5m', 'A tunnel without streams is closed'),
      keepalive: duration(
        '10s',
        'Ping a tunnel after so long a silence; one unanswered for as long again ends it',
      ),
      ready: duration(
        '30s',
        'systemd is told that the host is ready when it serves, or after so long although it does not',
        0,
      ),
      drain: duration('30s', 'How long open connections may go on after a stop was asked for', 0),
      reloadDrain: duration(
        '1h',
        'How long connections that were open at a reload may go on in the process that was replaced',
        0,
      ),
      restartGrace: duration(
        '5s',
        'How long open connections may go on after a restart was asked for; new ones are served meanwhile',
        0,
      ),
    })
    .prefault({}),
  limits: z
    .strictObject({
      connections: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(20_000)
        .describe('Open connections of local applications, a worker'),
      connectionsPerService: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(10_000)
        .describe('Open connections of one local calling service, a worker'),
      inboundConnections: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(20_000)
        .describe('Open connections from other hosts, a worker'),
      inboundConnectionsPerService: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(10_000)
        .describe('Open connections from other hosts of one calling service, a worker'),
      streamsPerTunnel: z
        .int()
        .min(1)
        .max(100_000)
        .default(10_000)
        .describe('Open streams in one tunnel'),
      tunnels: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(10_000)
        .describe(
          'Tunnels that peers have open, a worker; less where they would take more than a quarter of what memory the process may have',
        ),
      tunnelsPerPeer: z
        .int()
        .min(1)
        .max(100_000)
        .default(64)
        .describe('Tunnels of one calling service from one address to one service, a worker'),
      tunnelsPerHost: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(512)
        .describe('Tunnels from one address, of all its services, all workers'),
      pendingHandshakes: z
        .int()
        .min(1)
        .max(100_000)
        .default(512)
        .describe('TLS handshakes of peers under way, a worker'),
      pendingHandshakesPerAddress: z
        .int()
        .min(1)
        .max(100_000)
        .default(128)
        .describe('TLS handshakes under way from one source address, a worker'),
      handshakesPerAddress: z
        .int()
        .min(1)
        .max(1_000_000)
        .default(500)
        .describe(
          'TLS handshakes a second from one source address, a worker; four times as many at once',
        ),
      heldMiB: z
        .int()
        .min(8)
        .max(1_048_576)
        .default(128)
        .describe(
          'Memory for bytes on their way that a reader leaves waiting, MiB, all workers; a quarter of what the process may have, if that is less',
        ),
    })
    .prefault({}),
  log: z
    .strictObject({
      level: z
        .enum(['debug', 'info', 'warn', 'error'])
        .default('info')
        .describe('Least severity that is logged'),
      format: z
        .enum(['json', 'logfmt', 'text'])
        .default('json')
        .describe('`json` and `logfmt` for machines, `text` for people; on standard error'),
    })
    .prefault({}),
  accessLog: accessLogSection,
})

/** A parsed configuration: with all defaults, durations in milliseconds, addresses canonical. */
export type Config = z.output<typeof configSchema>

/** Whether the resolver runs. */
export function isDnsOn({ dns, capture }: Pick<Config, 'dns' | 'capture'>): boolean {
  return (dns.mode ?? capture.mode) === 'on'
}

/** A configuration as a user may write it. */
export type ConfigInput = z.input<typeof configSchema>
