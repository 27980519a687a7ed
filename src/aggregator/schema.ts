/**
 * Schemas of all documents of the API, from which its OpenAPI description is made; the compiler holds them to the types
 * of `src/model/fleet.ts`: a missing or other member does not compile.
 */
import { z } from 'zod'
import type * as Fleet from '../model/fleet.ts'
import type { Members } from '../model/schema.ts'

/** The schemas by the name under which the description lists them. */
export const schemaNames: z.core.$ZodRegistry<{ readonly id: string }> = z.registry()

function named<T extends object>(
  id: string,
  members: Members<T> & z.core.$ZodLooseShape,
): z.ZodType<T> {
  const schema = z.strictObject(members)
  schemaNames.add(schema, { id })
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- Members<T> has a schema of each member's type
  return schema as unknown as z.ZodType<T>
}

const text = z.string()
const time = z.iso.datetime().describe('RFC 3339, UTC')
const number = z.number()
const count = z.number().min(0)
const share = z.number().min(0).max(1)
const texts = z.array(text)
const action = z.enum(['allow', 'deny'])
const numbers = z.record(z.string(), z.number())
const health = z.enum(['healthy', 'degraded', 'failing', 'unknown'])

const coverage = named<Fleet.Coverage>('Coverage', {
  at: time.describe('The end of the span'),
  windowMs: count.describe('Length of the span'),
  live: z.boolean().describe('Whether the span ends now'),
  hosts: count.describe('Hosts that are known'),
  reporting: count.describe('Hosts whose reports cover the span'),
  notes: texts.describe('Why figures are missing or empty, one sentence each'),
})

const quantiles = named<Fleet.Quantiles>('Quantiles', { p50: count, p90: count, p99: count })
const orNull = <T>(schema: z.ZodType<T>): z.ZodType<T | null> => schema.nullable()

const traffic = named<Fleet.Traffic>('Traffic', {
  openedPerSecond: count.describe('Connections opened a second'),
  active: count.describe('Connections open at the end of the span'),
  closed: numbers.describe(
    'Connections ended, by response flag; LOST: cut because a worker of the host crashed',
  ),
  errorShare: orNull(share).describe('Share of ended connections that failed; null without any'),
  connectFailures: count,
  sentBytesPerSecond: count,
  receivedBytesPerSecond: count,
  connectMs: orNull(quantiles),
  firstByteMs: orNull(quantiles),
  durationMs: orNull(quantiles),
  more: z.exactOptional(numbers).describe('Counts of columns that this version does not know'),
})

const hostCounts = named<Fleet.HostCounts>('HostCounts', {
  total: count,
  ready: count,
  degraded: count,
  starting: count,
  draining: count,
  silent: count.describe('No report for 30 s'),
  conflicting: count.describe('Two hosts report with the same name'),
})

const storeStatus = named<Fleet.StoreStatus>('StoreStatus', {
  bytes: count,
  maxBytes: count,
  oldest: z.strictObject({ seconds: orNull(time), minutes: orNull(time), hours: orNull(time) }),
})

const overview = named<Fleet.OverviewDocument>('Overview', {
  coverage,
  version: text,
  hosts: hostCounts,
  services: count,
  pairs: count,
  traffic,
  problems: z.array(z.strictObject({ code: text, hosts: count })),
  store: storeStatus,
})

const policyRule = {
  source: text,
  destination: text,
  action,
  precedence: number,
} satisfies Members<Fleet.PolicyRule>

const edgePolicy = named<Fleet.EdgePolicy>('EdgePolicy', {
  allow: z.boolean(),
  rule: orNull(named<Fleet.PolicyRule>('PolicyRule', policyRule)),
  reason: text,
})

const node = named<Fleet.GraphNode>('GraphNode', {
  id: text,
  health,
  instances: count,
  hosts: texts,
  reasons: texts,
})

const edge = named<Fleet.GraphEdge>('GraphEdge', {
  source: text,
  destination: text,
  traffic,
  reporter: z.enum(['source', 'destination']),
  policy: orNull(edgePolicy),
})

const graph = named<Fleet.GraphDocument>('Graph', {
  coverage,
  group: z.enum(['service', 'host', 'datacenter', 'zone']),
  nodes: z.array(node),
  edges: z.array(edge),
  omitted: count,
})

const summary = named<Fleet.ServiceSummary>('ServiceSummary', {
  name: text,
  protocol: text,
  instances: count,
  hosts: texts,
  health,
  reasons: texts,
  inbound: traffic,
  callers: count,
  destinations: count,
})

const services = named<Fleet.FleetServicesDocument>('Services', {
  coverage,
  services: z.array(summary),
})

const workload = named<Fleet.WorkloadEntry>('Workload', {
  service: text,
  cpu: orNull(count).describe('Cores'),
  memoryBytes: orNull(count),
  tasks: orNull(count),
  sockets: orNull(count),
  cpuPressure: orNull(count),
  memoryPressure: orNull(count),
  ioPressure: orNull(count),
})

const hostState = z.enum(['starting', 'ready', 'degraded', 'draining', 'silent', 'conflicting'])

const instance = named<Fleet.InstanceEntry>('Instance', {
  host: text,
  id: text,
  target: orNull(text),
  captured: z.boolean(),
  health: z.enum(['passing', 'warning', 'critical']).nullable(),
  certificateNotAfter: orNull(time),
  hostState,
  resources: orNull(workload),
})

type ServicePolicyDocument = Fleet.FleetServiceDocument['policy']

const service = named<Fleet.FleetServiceDocument>('Service', {
  coverage,
  service: summary,
  instances: z.array(instance),
  callers: z.array(edge),
  destinations: z.array(edge),
  policy: z.strictObject({
    defaultAction: action.nullable(),
    intentions: z.array(
      z.strictObject({
        ...policyRule,
        used: orNull(count).describe('Connections that the rule decided in the span'),
      } satisfies Members<ServicePolicyDocument['intentions'][number]>),
    ),
  } satisfies Members<ServicePolicyDocument>),
})

const host = named<Fleet.HostEntry>('HostEntry', {
  name: text,
  state: hostState,
  lastReportAt: time,
  lateMs: number,
  lostRecords: count,
  version: orNull(text),
  datacenter: orNull(text),
  zone: orNull(text),
  services: texts,
  problems: z.array(z.strictObject({ code: text, message: text, blocks: z.boolean() })),
  clockOffsetMs: orNull(number),
  cpu: orNull(count).describe('Cores that the daemon uses'),
  memoryBytes: orNull(count).describe('Memory of the daemon'),
})

const hosts = named<Fleet.HostsDocument>('Hosts', { coverage, hosts: z.array(host) })

type Capture = NonNullable<Fleet.HostDocument['capture']>

const hostDocument = named<Fleet.HostDocument>('Host', {
  coverage,
  host,
  startedAt: orNull(time),
  nodeVersion: orNull(text),
  workers: orNull(count),
  capture: z
    .strictObject({
      mode: z.enum(['off', 'on']),
      backend: orNull(text),
      inSync: z.boolean().nullable(),
      plainInbound: orNull(count),
    } satisfies Members<Capture>)
    .nullable(),
  tunnels: z.strictObject({ sessions: count, peers: count }).nullable(),
  services: z.array(instance),
  workloads: z.array(workload),
  edges: z.array(edge),
  counters: numbers,
})

const values = z.array(orNull(number))

const series = named<Fleet.HistorySeries>('HistorySeries', {
  openedPerSecond: values,
  errorsPerSecond: values,
  deniedPerSecond: values,
  active: values,
  sentBytesPerSecond: values,
  receivedBytesPerSecond: values,
  connectP50Ms: values,
  connectP99Ms: values,
  firstByteP50Ms: values,
  firstByteP99Ms: values,
})

const history = named<Fleet.HistoryDocument>('History', {
  coverage,
  stepMs: count,
  at: z.array(time).describe('The ends of the steps'),
  series,
  missing: z.array(count).describe('Hosts whose reports for a step have not come'),
})

const risk = named<Fleet.Risk>('Risk', {
  kind: z.enum([
    'singleInstance',
    'oneHost',
    'oneZone',
    'certificateLife',
    'unusedAllow',
    'defaultDenyWouldCut',
    'oldVersion',
    'clockOff',
    'plaintext',
    'silentHost',
    'captureOff',
  ]),
  severity: z.enum(['high', 'medium', 'low']),
  subject: text,
  message: text,
  hint: text,
})

const risks = named<Fleet.RisksDocument>('Risks', { coverage, risks: z.array(risk) })

const versions = named<Fleet.VersionsDocument>('Versions', {
  coverage,
  versions: z.array(z.strictObject({ version: text, hosts: texts })),
  mixedPairs: z.array(z.strictObject({ source: text, destination: text, versions: texts })),
})

/** The schema of each document. */
export const documentSchemas: {
  readonly [Name in keyof Fleet.FleetDocuments]: z.ZodType<Fleet.FleetDocuments[Name]>
} = { overview, graph, services, service, hosts, host: hostDocument, history, risks, versions }

/** The schema of an event of the live view. */
export const liveEventSchema: z.ZodType<Fleet.LiveEvent> = named<Fleet.LiveEvent>('LiveEvent', {
  graph,
  hosts: hostCounts,
})

/** The schema of every refusal. */
export const errorSchema: z.ZodType<{
  error: { code: string; message: string; hint?: string }
}> = named('Error', {
  error: z.strictObject({ code: text, message: text, hint: z.exactOptional(text) }),
})
