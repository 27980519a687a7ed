/**
 * Reads the facts that `hostmesh snapshot` wrote, on any machine. All that explain() uses is checked here, so that a
 * truncated or edited file is rejected with its first fault and never used in part.
 */
import { z } from 'zod'
import { writeNamedFile } from '../lib/atomic-file.ts'
import { errorCode, MeshError } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import { backendKinds } from '../model/capture-backend.ts'
import { FACTS_FORMAT, FACTS_VERSION, type HostFacts, type PolicyFacts } from '../model/facts.ts'
import {
  localServiceSchema,
  type Members,
  meshServiceSchema,
  policyMembers,
  selectorSchema,
} from '../model/schema.ts'

/** A larger file is none of ours: the admin API makes no document of that size. */
const MAX_BYTES = 64 * 1_024 * 1_024

const names = z.array(z.string())

/** Loose: additions of a newer version do not matter to this one. */
const facts = z.looseObject({
  format: z.literal(FACTS_FORMAT),
  formatVersion: z.literal(FACTS_VERSION, {
    error: ({ input }) => `it is ${String(input)}, and this hostmesh reads ${FACTS_VERSION}`,
  }),
  writtenAt: z.iso.datetime(),
  node: z.string(),
  datacenter: z.string(),
  addresses: names,
  networks: names,
  awaited: names,
  snapshotVersion: z.number(),
  catalog: z.looseObject({
    description: z.string(),
    ageMs: z.number().nullable(),
    problems: names,
  }),
  services: z.array(meshServiceSchema),
  policies: z.array(
    z.object({
      ...policyMembers,
      origin: z.enum(['snapshot', 'catalog']),
    } satisfies Members<PolicyFacts>),
  ),
  local: z.array(localServiceSchema),
  domains: names,
  capture: z.looseObject({
    mode: z.enum(['off', 'on']),
    inSync: z.boolean().nullable(),
    problems: names,
    backend: z.enum(backendKinds).nullable(),
    plan: z
      .looseObject({
        workloads: z.array(z.looseObject({ selector: selectorSchema, capturePort: z.number() })),
        defaultCapturePort: z.number().optional(),
        refusesUnknownAtInstances: z.boolean().optional(),
        virtualRange: z.string(),
        virtualRange6: z.string(),
        daemonUid: z.number(),
        ownPorts: z.array(z.number()),
      })
      .nullable(),
  }),
  certificates: z.looseObject({
    trustDomain: z.string().nullable(),
    roots: z.array(z.looseObject({ fingerprint: z.string(), notAfter: z.string() })),
    leaves: z.array(
      z.looseObject({
        service: z.string(),
        spiffeId: z.string(),
        serialNumber: z.string(),
        notBefore: z.string(),
        notAfter: z.string(),
      }),
    ),
    revokedSerials: names,
    problems: names,
  }),
  tunnels: z.array(
    z.looseObject({
      source: z.string(),
      destination: z.string(),
      peerAddress: z.string(),
      direction: z.enum(['outbound', 'inbound']),
      streams: z.number(),
      rttMs: z.number().nullable(),
    }),
  ),
  loads: z.array(
    z.looseObject({
      worker: z.number(),
      endpoint: z.string(),
      inFlight: z.number(),
      cost: z.number(),
      failures: z.number(),
      ejectionReason: z.string().nullable(),
    }),
  ),
  problems: z.array(
    z.looseObject({
      code: z.string(),
      message: z.string(),
      hint: z.string(),
      blocks: z.boolean(),
    }),
  ),
  outcomes: z.array(
    z.looseObject({
      direction: z.enum(['outbound', 'inbound']),
      source: z.string(),
      target: z.string(),
      okAt: z.iso.datetime().nullable(),
      failure: z
        .looseObject({
          at: z.iso.datetime(),
          flag: z.string(),
          code: z.string(),
          reason: z.string(),
        })
        .nullable(),
    }),
  ),
  listeners: z.array(z.looseObject({ address: z.string(), isListening: z.boolean().nullable() })),
  probes: z.array(
    z.looseObject({
      endpoint: z.string(),
      kind: z.enum(['answered', 'handshake', 'old', 'failed']),
      verdict: z.string().nullable(),
      application: z.enum(['unknown', 'listens', 'silent']).nullable(),
      flag: z.string().nullable(),
      reason: z.string(),
      tookMs: z.number(),
    }),
  ),
})

/**
 * The facts in a file.
 * @throws MeshError HM_FILE_UNREADABLE when it cannot be read, HM_SNAPSHOT_INVALID when it does not hold facts.
 */
export function readFacts(path: string): HostFacts {
  return parseFacts(readTextFile(path, MAX_BYTES).text, path)
}

/**
 * The facts in a text; `name` is its name in messages.
 * @throws MeshError HM_SNAPSHOT_INVALID with the first fault.
 */
export function parseFacts(text: string, name: string): HostFacts {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw invalid(name, 'it is no JSON', error)
  }
  const parsed = facts.safeParse(value)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    const at = issue?.path.join('.') ?? ''
    throw invalid(name, `${at === '' ? '' : `${at}: `}${issue?.message ?? 'wrong form'}`)
  }
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- checked above, as far as explain() looks
  return parsed.data as unknown as HostFacts
}

/** Writes facts to a file that only the owner may read: they are a map of the mesh. */
export function writeFacts(path: string, document: object): void {
  try {
    writeNamedFile(path, `${JSON.stringify(document, null, 2)}\n`, 0o600)
  } catch (error) {
    throw new MeshError('HM_SNAPSHOT_WRITE_FAILED', `Cannot write ${path}: ${errorCode(error)}`, {
      cause: error,
      hint: 'Give a file in a folder that exists and that you may write',
    })
  }
}

function invalid(name: string, why: string, cause?: unknown): MeshError {
  return new MeshError('HM_SNAPSHOT_INVALID', `Cannot explain from ${name}: ${why}`, {
    ...(cause !== undefined && { cause }),
    hint: 'Write it again on its host with: hostmesh snapshot -o FILE',
  })
}
