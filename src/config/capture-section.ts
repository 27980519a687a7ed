/**
 * The section `capture` of the configuration file: what the kernel diverts to the daemon, by which means, and what
 * happens to other connections.
 */
import { z } from 'zod'
import { backendKinds } from '../model/capture-backend.ts'
import { isServiceName } from '../model/spiffe-id.ts'
import { duration, port } from './values.ts'

/** The section `capture`. */
export const captureSection = z
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
  .prefault({})
