/**
 * The sections `catalog` and `certificates` of the configuration file: where the daemon's knowledge of the mesh comes
 * from.
 */
import { z } from 'zod'
import { duration, path } from './values.ts'

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

/** The section `catalog`. */
export const catalogSection = z
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
  .describe('Where services, instances and intentions come from')

/** The section `certificates`. */
export const certificatesSection = z
  .discriminatedUnion('kind', [
    z.strictObject({
      kind: z.literal('files'),
      directory: path
        .optional()
        .describe('Directory as `hostmesh ca issue` writes it; or give certificate, key and roots'),
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
  .describe('Where certificates come from; `consul` uses the agent that the catalog uses')
