/**
 * The capture plan that was last in the kernel, kept in the state directory: a boot unit makes the guard from it before
 * any workload and the daemon start.
 */
import { existsSync } from 'node:fs'
import { z } from 'zod'
import type { BackendSettings, MeshAddresses } from '../controlplane/capture/backend.ts'
import type { PortPlan } from '../controlplane/capture/port-rules.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
import { MeshError } from '../lib/errors.ts'
import { silentLog } from '../lib/log.ts'
import { openStateFile, type StateFile } from '../lib/state-file.ts'
import { type BackendKind, backendKinds } from '../model/capture-backend.ts'

/** The file's name in the state directory, also used in its first line, its version, and its maximum size. */
export const KEPT_CAPTURE = { name: 'capture', version: 1, maxBytes: 64 * 1024 * 1024 } as const

/** The ports of the daemon, also guarded from the boot on; a separate file, because it exists without capture. */
export const KEPT_PORTS = { name: 'capture-ports', version: 1, maxBytes: 1024 * 1024 } as const

/** The content of the capture file. */
export interface KeptCapture {
  /** The backend that diverted and that makes the guard. */
  readonly backend: BackendKind
  readonly plan: CapturePlan
  readonly settings: BackendSettings
  readonly addresses: MeshAddresses
}

const selector = z.union([
  z.object({ kind: z.literal('cgroup'), path: z.string() }),
  z.object({ kind: z.literal('user'), user: z.string() }),
  z.object({ kind: z.literal('sourceAddress'), ip: z.string() }),
])

const addresses = z.array(z.object({ ip: z.string(), port: z.int() }))

/** Schema of the capture file. */
export const keptCapture = z.object({
  backend: z.enum(backendKinds).default('nftables'),
  plan: z.object({
    workloads: z.array(z.object({ selector, capturePort: z.int() })),
    defaultCapturePort: z.int().optional(),
    refusesUnknownAtInstances: z.boolean().default(false),
    virtualRange: z.string(),
    virtualRange6: z.string(),
    daemonUid: z.int(),
    ownPorts: z.array(z.int()),
  }),
  settings: z.object({
    mark: z.int(),
    priority: z.int(),
    table: z.int(),
    spareSeconds: z.int(),
    sparesWhileUsed: z.boolean(),
  }),
  addresses: z.object({ instances: addresses, permitted: addresses }),
})

const keptAddress = z.object({
  ip: z.union([z.ipv4(), z.ipv6()]),
  port: z.int().min(1).max(65_535),
})

/** Schema of the ports file. */
const keptPorts = z.object({
  ports: z.array(z.object({ kind: z.enum(['tcp', 'udp']), address: keptAddress })),
  plainInbound: z
    .object({ targets: z.array(keptAddress), refuses: z.boolean() })
    .default({ targets: [], refuses: false }),
})

/** Schedules a write of the file. */
export function keepCapture(file: StateFile, what: KeptCapture): void {
  file.save(() => JSON.stringify(what))
}

/** Reads a kept plan. @throws MeshError HM_CAPTURE_KEPT_INVALID when there is no valid one */
export function readKeptCapture(path: string): KeptCapture {
  return readKept(path, KEPT_CAPTURE, keptCapture)
}

/** Reads kept ports. @throws MeshError HM_CAPTURE_KEPT_INVALID when there are no valid ones */
export function readKeptPorts(path: string): PortPlan {
  return readKept(path, KEPT_PORTS, keptPorts)
}

function readKept<T>(
  path: string,
  { name, version, maxBytes }: typeof KEPT_CAPTURE | typeof KEPT_PORTS,
  shape: z.ZodType<T>,
): T {
  const file = openStateFile({
    path,
    format: `hostmesh-${name}`,
    version,
    maxBytes,
    log: silentLog,
  })
  const read = shape.safeParse(file.stored?.body)
  if (read.success) return read.data
  if (!existsSync(path))
    throw new MeshError('HM_CAPTURE_KEPT_INVALID', `Cannot read a kept capture plan: no ${path}`, {
      hint: 'A daemon with capture on writes it to its state directory',
    })
  throw new MeshError(
    'HM_CAPTURE_KEPT_INVALID',
    `Cannot use the capture plan ${path}: it is damaged`,
    {
      hint: 'Nothing is refused by it; a daemon with capture on writes it anew: systemctl start hostmesh',
    },
  )
}
