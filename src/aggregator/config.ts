/**
 * The configuration file of the aggregator: every key with its type, default and meaning. Strict, as that of the daemon
 * (`src/config/schema.ts`). Rules that involve several keys are in `config-rules.ts`.
 */
import { z } from 'zod'
import { duration, ip, path, port, size } from '../config/values.ts'

/** What a caller may do; `access.ts` has the rights of each. */
const roles = ['viewer', 'tapper', 'operator', 'auditor'] as const

/** The role of a caller. */
export type Role = (typeof roles)[number]

export const roleSchema: z.ZodEnum<{ [R in Role]: R }> = z.enum(roles)

const roleOfName = z.strictObject({
  name: z.string().min(1).max(256).describe('Compared as it is, also in case'),
  role: roleSchema.describe('Role of who has this name'),
})

const clientCertificates = z.strictObject({
  roots: path.describe('Roots of client certificates, PEM'),
  roles: z
    .array(roleOfName)
    .max(1_000)
    .default([])
    .describe('Roles by the one URI of a certificate, or by its common name where it has no URI'),
})

const proxy = z.strictObject({
  header: z
    .string()
    .regex(/^[A-Za-z0-9-]{1,64}$/, 'Must be the name of a header')
    .refine(
      (name) => !['authorization', 'cookie', 'host'].includes(name.toLowerCase()),
      'Must be a header that the proxy sets for each request',
    )
    .transform((name) => name.toLowerCase())
    .describe('Header in which the proxy says who the user is, such as X-Forwarded-User'),
  socket: path
    .optional()
    .describe(
      'Unix socket for the proxy alone: the header of whoever may connect there is accepted',
    ),
  certificate: z
    .string()
    .min(1)
    .optional()
    .describe('Name in the client certificate of the proxy, as in clientCertificates.roles'),
  roles: z.array(roleOfName).max(10_000).default([]).describe('Roles by the name of the user'),
  role: roleSchema.optional().describe('Role of all other users; refused unless given'),
})

/** The whole file. */
export const aggregatorConfigSchema = z.strictObject({
  listen: z
    .strictObject({
      socket: path
        .default('/run/hostmesh-aggregator/api.sock')
        .describe('Unix socket of the API and the dashboard'),
      group: z
        .string()
        .min(1)
        .optional()
        .describe('Group that may use the socket; its members are operators'),
      address: ip
        .default('127.0.0.1')
        .describe('Address of the API and the dashboard; beyond loopback only with tls and access'),
      port: port.default(15_190).describe('Port of the API and the dashboard'),
      names: z
        .array(z.string().regex(/^[A-Za-z0-9.-]{1,253}$/, 'Must be a host name'))
        .max(100)
        .default([])
        .describe('Host names by which browsers reach it, beside localhost and the address'),
    })
    .prefault({}),
  reports: z
    .strictObject({
      address: ip
        .default('127.0.0.1')
        .describe(
          'Address where reports arrive, loopback only: the mesh delivers them to the service hostmesh-aggregator',
        ),
      port: port.default(15_191).describe('Port where reports arrive'),
      rebindAfter: duration(
        '1h',
        'The name of a host that has been silent for so long may come back with another key, as after a new installation',
        60_000,
      ),
    })
    .prefault({}),
  store: z
    .strictObject({
      directory: path
        .default('/var/lib/hostmesh-aggregator')
        .describe('Directory of the database and the audit log'),
      maxBytes: size('10GiB', 'Most bytes of the database; the oldest figures go first', 16 << 20),
      retention: z
        .strictObject({
          seconds: duration('24h', 'How long steps of 10 s are kept', 60_000),
          minutes: duration('14d', 'How long steps of a minute are kept', 60_000),
          hours: duration('365d', 'How long steps of an hour are kept', 3_600_000),
        })
        .prefault({}),
    })
    .prefault({}),
  tls: z
    .strictObject({
      certificate: path.describe(
        'Certificate of the API, with its chain, PEM; read again when it changes',
      ),
      key: path.describe('Its key, PEM'),
    })
    .optional(),
  access: z
    .strictObject({
      tokens: path
        .optional()
        .describe(
          'File of bearer tokens; read again when it changes (docs/observability.md#access)',
        ),
      clientCertificates: clientCertificates.optional(),
      proxy: proxy.optional(),
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

/** A parsed configuration: with all defaults, durations in milliseconds, sizes in bytes. */
export type AggregatorConfig = z.output<typeof aggregatorConfigSchema>
