/**
 * The section `services` of the configuration file: one service of this host, how its connections are recognized, and
 * whom it calls.
 */
import { z } from 'zod'
import { ip, port, serviceName } from './values.ts'

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

/** One service of this host. */
export const service = z.strictObject({
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
