/**
 * What this host remembers of its last run, so that it serves at once when Consul is unreachable or the catalog file is
 * invalid: catalog answers and policy, certificates, its own name in Consul, virtual addresses, capture plan and
 * ports. One file each in `state.directory`.
 *
 * A folder that cannot be used disables the memory and is reported in the status; the daemon runs nevertheless.
 */
import { join } from 'node:path'
import { z } from 'zod'
import type { Config } from '../config/schema.ts'
import type { PortPlan } from '../controlplane/capture/port-rules.ts'
import type { Catalog } from '../controlplane/catalog/catalog.ts'
import {
  CATALOG_FILE_STATE_VERSION,
  MAX_CATALOG_FILE_STATE_BYTES,
} from '../controlplane/catalog/file/kept-file.ts'
import {
  CATALOG_STATE_VERSION,
  MAX_CATALOG_STATE_BYTES,
  type RememberedCatalog,
  rememberCatalog,
} from '../controlplane/catalog/remembered.ts'
import type { VirtualAddresses } from '../controlplane/discovery/virtual-addresses.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import {
  CERTIFICATE_STATE_VERSION,
  MAX_CERTIFICATE_STATE_BYTES,
  RememberedCertificates,
} from '../controlplane/identity/remembered.ts'
import { sleep } from '../lib/abort.ts'
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import {
  noStateFile,
  openStateFile,
  prepareStateDirectory,
  type StateFile,
} from '../lib/state-file.ts'
import type { StatePart, StateStatus } from '../model/admin.ts'
import { Problem } from '../model/problem.ts'
import {
  KEPT_CAPTURE,
  KEPT_PORTS,
  type KeptCapture,
  keepCapture,
  keptCapture,
} from './kept-capture.ts'
import { KEPT_REPORTS, REPORT_KEY } from './reports/kept-reports.ts'
import type { StateName } from './state-files.ts'

/** How long a start waits for the agent to report its node name when a remembered name exists, milliseconds. */
const NAME_PATIENCE_MS = 500

const VIRTUAL_ADDRESSES_VERSION = 1
const NODE_VERSION = 1

const storedAddresses = z.record(z.string(), z.array(z.string()).max(8))
const storedNode = z.object({ source: z.string(), nodeName: z.string().min(1) })

/** A catalog whose agent reports its node name. */
interface NamedCatalog extends Pick<Catalog, 'description'> {
  readAgentSelf(): Promise<{ readonly nodeName: string }>
}

/** The state files of one daemon, and the parts that use them. */
export class HostState implements AsyncDisposable {
  private readonly config: Config
  private readonly log: Log
  private readonly folderProblem: string | undefined
  private readonly files = new Map<string, StateFile>()
  private readonly addresses: StateFile
  private keptAddresses: VirtualAddresses
  private nameProblem: string | undefined
  private captureFile: StateFile | undefined
  private portsFile: StateFile | undefined
  private catalogMemory: RememberedCatalog | undefined
  private certificateMemory: RememberedCertificates | undefined
  private isHeld = false

  constructor(config: Config, log: Log) {
    this.config = config
    this.log = log.child('state')
    this.folderProblem = prepareStateDirectory(config.state.directory)
    if (this.folderProblem !== undefined)
      this.log.warn('Nothing is kept for a restart', { problem: this.folderProblem })
    this.addresses = this.open('virtual-addresses', VIRTUAL_ADDRESSES_VERSION, 4 * 1024 * 1024)
    this.keptAddresses = new Map(Object.entries(valid(this.addresses, storedAddresses) ?? {}))
  }

  /** Keeps the content of a catalog file: at the next start the file may be invalid or another one. */
  catalogFile(): StateFile {
    return this.open('catalog-file', CATALOG_FILE_STATE_VERSION, MAX_CATALOG_FILE_STATE_BYTES)
  }

  /** The catalog to follow: a catalog file keeps its own state, the answers of an agent are remembered here. */
  catalog<C extends Catalog>(inner: C): C | RememberedCatalog {
    if (this.config.catalog.kind === 'file') return inner
    this.catalogMemory = rememberCatalog(inner, {
      file: this.open('catalog', CATALOG_STATE_VERSION, MAX_CATALOG_STATE_BYTES),
      datacenter: this.config.datacenter,
    })
    return this.catalogMemory
  }

  /** The certificates to use. A source with files of its own needs no other memory. */
  certificates(inner: CertificateSource): CertificateSource {
    if (this.config.certificates.kind !== 'consul') return inner
    this.certificateMemory = new RememberedCertificates(inner, {
      file: this.open('certificates', CERTIFICATE_STATE_VERSION, MAX_CERTIFICATE_STATE_BYTES),
      log: this.log,
      datacenter: this.config.datacenter,
    })
    return this.certificateMemory
  }

  /** The name of this host in Consul; `fallback` when neither the agent nor the memory has it. */
  async nodeName(consul: NamedCatalog, fallback: string): Promise<string> {
    const file = this.open('node', NODE_VERSION, 4_096)
    const stored = valid(file, storedNode)
    const known = stored?.source === consul.description ? stored.nodeName : undefined
    const asked = consul.readAgentSelf().then(
      ({ nodeName }) => {
        file.save(() => JSON.stringify({ source: consul.description, nodeName }))
        return nodeName
      },
      (error: unknown) => {
        this.log.warn('Cannot ask Consul for the name of this node', {
          taken: known ?? fallback,
          error: describeError(error),
        })
        return undefined
      },
    )
    if (known === undefined) return (await asked) ?? fallback
    const patience = new AbortController()
    const name = await Promise.race([
      asked,
      sleep(NAME_PATIENCE_MS, patience.signal).then(() => undefined),
    ])
    patience.abort()
    void asked.then((late) => {
      if (late === undefined || late === (name ?? known)) return
      this.nameProblem = `Consul calls this host ${late}, and it was started as ${known}, which is remembered; restart it`
      this.log.warn(this.nameProblem)
    })
    return name ?? known
  }

  /** The assignments of earlier runs. */
  virtualAddresses(): VirtualAddresses {
    return this.keptAddresses
  }

  /** Keeps assignments for the next run; cheap when they have not changed. */
  keepVirtualAddresses(assigned: VirtualAddresses): void {
    if (assigned === this.keptAddresses) return
    this.keptAddresses = assigned
    this.addresses.save(() => JSON.stringify(Object.fromEntries(assigned)))
  }

  /** Whether another process owns the files: changes are then written when this process owns them again. */
  hold(isHeld: boolean): void {
    this.isHeld = isHeld
    for (const file of this.files.values()) file.hold(isHeld)
  }

  /** What an earlier run captured; undefined when that is unknown. */
  keptCapture(): KeptCapture | undefined {
    this.captureFile ??= this.open(KEPT_CAPTURE.name, KEPT_CAPTURE.version, KEPT_CAPTURE.maxBytes)
    return valid(this.captureFile, keptCapture)
  }

  /** Nothing is captured any more, neither now nor at the next boot. */
  async forgetCapture(): Promise<void> {
    await this.captureFile?.remove()
  }

  /** Keeps the capture plan that is in the kernel, for a boot unit. */
  keepCapture(what: KeptCapture): void {
    this.captureFile ??= this.open(KEPT_CAPTURE.name, KEPT_CAPTURE.version, KEPT_CAPTURE.maxBytes)
    keepCapture(this.captureFile, what)
  }

  /** Keeps the ports of this daemon for a boot unit; undefined: they are not guarded. */
  async keepPorts(plan: PortPlan | undefined): Promise<void> {
    const { name, version, maxBytes } = KEPT_PORTS
    this.portsFile ??= this.open(name, version, maxBytes)
    if (plan === undefined) await this.portsFile.remove()
    else
      this.portsFile.save(() => {
        const ports = plan.ports.map(({ kind, address }) => ({ kind, address }))
        return JSON.stringify({ ...plan, ports })
      })
  }

  /** The host's key among reporting hosts, and the records that no aggregator has accepted yet. */
  reports(): { readonly keyFile: StateFile; readonly recordsFile: StateFile } {
    return {
      keyFile: this.open('report-key', REPORT_KEY.version, REPORT_KEY.maxBytes),
      recordsFile: this.open('reports', KEPT_REPORTS.version, KEPT_REPORTS.maxBytes),
    }
  }

  /** What is live, what is remembered, and the problems of the files. */
  status(): StateStatus {
    return {
      directory: this.config.state.directory,
      parts: [...this.catalogParts(), ...this.certificateParts()],
      problems: this.problems().map(({ message }) => message),
    }
  }

  /** What is not kept for the next run, and why. */
  problems(): readonly Problem[] {
    const { directory } = this.config.state
    const unkept = [
      { message: this.folderProblem, subject: directory },
      ...[...this.files].map(([subject, file]) => ({ message: file.problem(), subject })),
    ]
    return [
      ...unkept.flatMap(({ message, subject }) =>
        message === undefined ? [] : new Problem('HM_STATE_NOT_KEPT', message, { subject }),
      ),
      ...(this.nameProblem === undefined
        ? []
        : [new Problem('HM_STATE_NODE_RENAMED', this.nameProblem)]),
    ]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const file of this.files.values()) await file[Symbol.asyncDispose]()
  }

  private catalogParts(): StatePart[] {
    if (this.catalogMemory === undefined) return []
    const { lastGoodAtMs } = this.catalogMemory.health()
    const liveAgeMs = lastGoodAtMs === undefined ? undefined : performance.now() - lastGoodAtMs
    const remembered = this.catalogMemory.remembered()
    return (['services', 'policies'] as const).map((part) => {
      const { known, count, sinceMs } = remembered[part]
      const ageMs = sinceMs === undefined ? liveAgeMs : Date.now() - sinceMs
      const isStale = known > 0 && ageMs !== undefined && ageMs > this.config.state.maxStale
      return {
        part,
        state: isStale ? 'stale' : stateOf(count, known > 0),
        remembered: count,
        ageMs: known === 0 ? null : rounded(ageMs),
      }
    })
  }

  /** Never stale: a certificate remains equally good until it expires. */
  private certificateParts(): StatePart[] {
    if (this.certificateMemory === undefined) return []
    const { count, sinceMs, isKnown } = this.certificateMemory.remembered()
    const ageMs = sinceMs === undefined ? undefined : Date.now() - sinceMs
    return [
      {
        part: 'certificates',
        state: stateOf(count, isKnown),
        remembered: count,
        ageMs: rounded(ageMs),
      },
    ]
  }

  private open(name: StateName, version: number, maxBytes: number): StateFile {
    if (this.folderProblem !== undefined) return noStateFile
    const path = join(this.config.state.directory, `${name}.json`)
    const file = openStateFile({
      path,
      format: `hostmesh-${name}`,
      version,
      maxBytes,
      log: this.log,
    })
    file.hold(this.isHeld)
    this.files.set(name, file)
    return file
  }
}

function stateOf(remembered: number, isKnown: boolean): StatePart['state'] {
  if (remembered > 0) return 'remembered'
  return isKnown ? 'live' : 'none'
}

function rounded(ageMs: number | undefined): number | null {
  return ageMs === undefined ? null : Math.max(0, Math.round(ageMs))
}

function valid<Output>(file: StateFile, schema: z.ZodType<Output>): Output | undefined {
  if (file.stored === undefined) return undefined
  const parsed = schema.safeParse(file.stored.body)
  if (parsed.success) return parsed.data
  file.reject('its body does not have the expected shape')
  return undefined
}
