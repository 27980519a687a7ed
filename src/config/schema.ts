/**
 * The configuration file: every key with its type, default and meaning. The JSON schema, the error messages and
 * docs/configuration.md are made from this file.
 *
 * Strict: an unknown key is an error. Durations are text with a unit (`5s`, `200ms`, `1h30m`) and become milliseconds.
 * The parsed value is the daemon's {@link Config}. Rules that involve several keys are in validate.ts.
 */
import { z } from 'zod'
import { DURATION_PATTERN, formatDuration, parseDuration } from '../lib/duration.ts'
import { canonicalIp } from '../model/address.ts'
import { backendKinds } from '../model/capture-backend.ts'
import { isServiceName } from '../model/spiffe-id.ts'

/** A duration: text in the file, milliseconds in the value; `config show` encodes it as text. */
function duration(defaultText: string, meaning: string, minMs = 1) {
  return z
    .codec(z.string(), z.number(), {
      decode: (text, context) => {
        const ms = parseDuration(text)
        if (ms !== undefined && ms >= minMs) return ms
        const message = `Must be a duration such as 500ms, 10s or 1h30m, ${formatDuration(minMs)} to 365d`
        context.issues.push({ code: 'custom', message, input: text })
        return z.NEVER
      },
      encode: formatDuration,
    })
    .prefault(defaultText)
    .meta({ description: meaning, pattern: DURATION_PATTERN })
}

const port = z.int().min(1).max(65_535)
const serviceName = z
  .string()
  .refine(
    isServiceName,
    'Must be a service name: a-z, 0-9, "-", "." and "_", at most 128 characters',
  )
const ip = z
  .string()
  .refine((text) => canonicalIp(text) !== undefined, 'Must be an IPv4 or IPv6 address')
  .overwrite((text) => canonicalIp(text) ?? text)
const path = z.string().min(1)

const identity = z
  .union([
    z.strictObject({
      cgroup: z
        .string()
        .regex(
          /^[^/\s"'][^\s"']*$/,
          'Must be a path below the cgroup v2 root, without leading slash',
        )
        .describe('cgroup v2 path of the workload, such as system.slice/web.service'),
    }),
    z.strictObject({
      user: z
        .union([
          z.string().regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'Must be a user name'),
          z.int().min(0),
        ])
        .describe('Unix user, by name or number'),
    }),
    z.strictObject({ sourceAddress: ip.describe('Address of a container on a local bridge') }),
  ])
  .describe('How the kernel recognizes the connections that this service opens')

const upstream = z.strictObject({
  destination: serviceName.describe('Service that is called'),
  bindPort: port
    .optional()
    .describe('Local port that leads there; leave out to reach it through capture only'),
  bindAddress: ip
    .default('127.0.0.1')
    .describe('Address of that port; loopback unless you know why'),
})

const service = z.strictObject({
  name: serviceName.describe('Name in the catalog, in intentions and in the certificate'),
  id: z
    .string()
    .regex(/^[A-Za-z0-9._:-]{1,128}$/, 'Must be 1 to 128 of A-Z a-z 0-9 . _ : -')
    .optional()
    .describe('Unique on this host; the name unless several instances of a service run here'),
  port: port.optional().describe('Port where the application listens; leave out for a pure caller'),
  connectPort: port
    .optional()
    .describe(
      'A tunnel port for this service alone, for Connect peers that send no server name (consul connect proxy)',
    ),
  address: ip.default('127.0.0.1').describe('Address where the application listens'),
  deliverFrom: ip
    .optional()
    .describe(
      'Local address that connections to the application come from, such as 127.0.0.2, for applications that trust 127.0.0.1',
    ),
  proxyProtocol: z
    .enum(['off', 'v2'])
    .default('off')
    .describe(
      '`v2` begins each connection to the application with a PROXY protocol header: the address and the service of the caller',
    ),
  identity: identity.optional(),
  upstreams: z.array(upstream).max(200).default([]).describe('Services that this one calls'),
})

/** The address of a Consul agent. */
export const consulAddress = z
  .string()
  .regex(
    /^(https?:\/\/[^\s/]+|unix:\/\/\/\S+)$/,
    'Must be http://host:port, https://host:port or unix:///path',
  )

const consul = z.strictObject({
  address: consulAddress.default('http://127.0.0.1:8500').describe('The local Consul agent'),
  token: z.string().optional().describe('ACL token; prefer tokenFile'),
  tokenFile: path.optional().describe('File that holds the ACL token'),
  caFile: path.optional().describe('Roots for an https address, PEM'),
  certFile: path
    .optional()
    .describe('Certificate for an agent that asks for one (verify_incoming), PEM'),
  keyFile: path.optional().describe('Key of that certificate, PEM'),
  tlsServerName: z
    .string()
    .regex(/^[A-Za-z0-9.-]{1,253}$/, 'Must be a host name')
    .optional()
    .describe("Name in the agent's certificate, where it is not the host of the address"),
  register: z.boolean().default(true).describe('Register the local services as connect-proxies'),
  requestTimeout: duration('10s', 'Deadline of a call that does not block'),
})

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
    })
    .prefault({}),
  datacenter: z
    .string()
    .regex(/^[a-z0-9_-]{1,64}$/, 'Must be a Consul datacenter name: a-z 0-9 _ -')
    .default('dc1')
    .describe('Consul datacenter of this host; part of every identity'),
  catalog: z
    .discriminatedUnion('kind', [
      z.strictObject({
        kind: z.literal('file'),
        path: path.describe('YAML file of services, instances and intentions'),
      }),
      z.strictObject({
        kind: z.literal('consul'),
        ...consul.shape,
        watch: z
          .enum(['upstreams', 'on-demand', 'all'])
          .default('on-demand')
          .describe(
            'Follow the services that are named as upstreams; beside these, each one that is used (a DNS question, a captured connection), until it has not been for `unusedAfter`; or all mesh services',
          ),
        unusedAfter: duration(
          '15m',
          'With `watch: on-demand`: a service with no connection and no DNS question for so long is followed no more',
          10_000,
        ),
      }),
    ])
    .describe('Where services, instances and intentions come from'),
  certificates: z
    .discriminatedUnion('kind', [
      z.strictObject({
        kind: z.literal('files'),
        directory: path
          .optional()
          .describe(
            'Directory as `hostmesh ca issue` writes it; or give certificate, key and roots',
          ),
        certificate: path
          .optional()
          .describe('Certificate of a service, PEM; `{service}` stands for its name'),
        key: path.optional().describe('Private key of a service, PEM; `{service}` as above'),
        roots: path.optional().describe('All roots that are trusted, PEM'),
        trustDomain: z
          .string()
          .optional()
          .describe('Trust domain of the roots; that of the first certificate unless given'),
      }),
      z.strictObject({
        kind: z.literal('builtin'),
        server: z
          .string()
          .regex(
            /^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}$/,
            'Must be host:port, with an IPv6 address in brackets',
          )
          .optional()
          .describe('Where `hostmesh ca serve` answers; what the join token says unless given'),
        tokenFile: path
          .optional()
          .describe(
            'File with the join token from `hostmesh ca token`; read when there is no host certificate',
          ),
        directory: path
          .default('/var/lib/hostmesh/certificates')
          .describe('Where the daemon keeps its keys and certificates; a directory of its own'),
      }),
      z.strictObject({ kind: z.literal('consul') }),
    ])
    .describe('Where certificates come from; `consul` uses the agent that the catalog uses'),
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
  capture: z
    .strictObject({
      mode: z
        .enum(['off', 'on'])
        .default('off')
        .describe('`on` diverts connections to mesh services by rules of the kernel'),
      backend: z
        .enum(['auto', ...backendKinds])
        .default('auto')
        .describe(
          'What diverts: `nftables` (TPROXY), or `iptables` (REDIRECT and connection tracking) for hosts that cannot; `auto` finds out',
        ),
      mark: z
        .int()
        .min(1)
        .max(0xffff_ffff)
        .default(0x1000)
        .describe(
          'Bits of the packet mark that are ours, `0x1000` unless given; choose bits that nobody else on the host uses',
        ),
      rulePriority: z
        .int()
        .min(1)
        .max(32_765)
        .default(5)
        .describe('Priority of the `ip rule` that sends marked packets to loopback'),
      routeTable: z
        .int()
        .min(1)
        .max(4_294_967_295)
        .default(213)
        .describe('Number of the routing table for them'),
      basePort: port
        .default(15_100)
        .describe('First of the capture ports; each service with an identity takes the next one'),
      virtualRange: z
        .string()
        .default('240.0.0.0/4')
        .describe('IPv4 range of virtual addresses; all of it is captured'),
      virtualRange6: z
        .string()
        .default('fdc6:6d65:7368::/64')
        .describe('IPv6 range of virtual addresses; all of it is captured'),
      unknownCallers: z
        .string()
        .refine(isServiceName, 'Must be "refuse" or the name of a service of this host')
        .default('refuse')
        .describe(
          'Local processes of no identity that dial the mesh: `refuse` resets them at virtual addresses, the name of a service of this host makes them that service',
        ),
      unknownToInstances: z
        .enum(['pass', 'refuse'])
        .default('pass')
        .describe(
          'Local processes of no identity that dial the address of an instance itself: `pass` without the mesh, or `refuse` by reset; for hosts that are done migrating',
        ),
      daemonUser: z
        .union([z.string(), z.int().min(0)])
        .optional()
        .describe('User the daemon runs as, exempt from capture; its own user unless given'),
      plainInbound: z
        .enum(['count', 'refuse'])
        .default('count')
        .describe(
          'Connections from other hosts that reach the port of a service itself, around the mesh: counted only, or refused by reset; for services whose callers are all in the mesh',
        ),
      permissive: z
        .array(
          z
            .string()
            .refine(
              (text) => text === '*' || isServiceName(text),
              'Must be the name of a service, or "*" for all',
            ),
        )
        .default([])
        .describe(
          'Services whose instances may be reached in plaintext, counted, where the mesh cannot carry a connection (daemon stopped); `*` for all. Everything else is refused then',
        ),
      spareOpenFor: duration(
        '1h',
        'How long a connection goes on that a workload had before capture came',
        1_000,
      ),
      spareOpen: z
        .enum(['cut', 'keep'])
        .default('cut')
        .describe('What becomes of it after that time: `cut`, or `keep` as long as it is used'),
    })
    .prefault({}),
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
  metrics: z
    .strictObject({
      address: ip
        .default('127.0.0.1')
        .describe('Address of the metrics port; anyone who reaches it may read'),
      port: port
        .optional()
        .describe('Port of /metrics over HTTP; only on the admin socket unless given'),
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
        .enum(['json', 'text'])
        .default('json')
        .describe('`json` for machines, `text` for people; on standard error'),
    })
    .prefault({}),
})

/** A parsed configuration: with all defaults, durations in milliseconds, addresses canonical. */
export type Config = z.output<typeof configSchema>

/** Whether the resolver runs. */
export function isDnsOn({ dns, capture }: Pick<Config, 'dns' | 'capture'>): boolean {
  return (dns.mode ?? capture.mode) === 'on'
}

/** A configuration as a user may write it. */
export type ConfigInput = z.input<typeof configSchema>
