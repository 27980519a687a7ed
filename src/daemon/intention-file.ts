/**
 * Reads a set of intentions from a file: a catalog file, or Consul's intentions as config entries, as Kubernetes objects, or
 * as its API lists them, in JSON or YAML. Pure.
 *
 * The rules are decoded by the functions that read them from a catalog, so that they mean the same.
 */
import { z } from 'zod'
import { decodeIntentions } from '../controlplane/catalog/consul/decode-intentions.ts'
import { decodeCatalog, policyOf } from '../controlplane/catalog/file/decode.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import { isRecord, quoteForMessage } from '../lib/json-value.ts'
import { formatProblems, parseYamlDocument } from '../lib/yaml-document.ts'
import type { DefaultPolicy } from '../model/intention.ts'
import type { ServicePolicy } from '../model/snapshot.ts'

/** All rules of a mesh. */
export interface IntentionSet {
  /** Of a catalog file that says it, else the given one. */
  readonly defaultPolicy: DefaultPolicy
  /** The rules of each destination that was asked for. */
  readonly policyByDestination: ReadonlyMap<string, ServicePolicy>
  /** Rules that are read and cannot be obeyed, entries that are no intentions: one sentence each. */
  readonly problems: readonly string[]
}

/** What is wanted of a file. */
export interface IntentionRequest {
  readonly fileName: string
  /** For what no intention matches; a catalog file says it itself. */
  readonly defaultPolicy: DefaultPolicy
  readonly destinations: readonly string[]
}

type Entry = Readonly<Record<string, unknown>>

const CATALOG_KEYS = ['services', 'intentions', 'defaultPolicy']

/** Reads a set. @throws MeshError HM_USAGE_INTENTIONS for a text that is none */
export function readIntentions(text: string, request: IntentionRequest): IntentionSet {
  const documents = parseDocuments(text, request.fileName)
  const [first] = documents
  // An empty set would cut everything: it is written as [].
  if (first === undefined) throw invalid(request.fileName, 'it is empty')
  return documents.length === 1 && isCatalogFile(first)
    ? fromCatalog(text, request)
    : fromConsul(documents.flat(), request)
}

/** Whether a document has the form of a catalog file. */
export function isCatalogFile(document: unknown): boolean {
  return isRecord(document) && CATALOG_KEYS.some((key) => key in document)
}

function fromCatalog(text: string, { fileName, destinations }: IntentionRequest): IntentionSet {
  const decoded = decodeCatalog(text, fileName)
  if ('problems' in decoded) throw invalid(fileName, `\n  ${decoded.problems.join('\n  ')}`)
  const { content } = decoded
  return {
    defaultPolicy: content.defaultPolicy,
    policyByDestination: new Map(destinations.map((name) => [name, policyOf(content, name)])),
    problems: [],
  }
}

function fromConsul(entries: readonly unknown[], request: IntentionRequest): IntentionSet {
  const { fileName, destinations, defaultPolicy } = request
  const skipped: string[] = []
  const rules = entries.flatMap((entry, index) => rulesOf(entry, index, fileName, skipped))
  const body = Object.fromEntries(
    destinations.map((name) => [
      name,
      rules.filter(
        ({ DestinationName: target }) =>
          target === '*' || String(target).toLowerCase() === name.toLowerCase(),
      ),
    ]),
  )
  try {
    const { byDestination, problems } = decodeIntentions(destinations, body)
    return {
      defaultPolicy,
      policyByDestination: new Map(
        destinations.map((destination) => [
          destination,
          { destination, defaultPolicy, intentions: byDestination.get(destination) ?? [] },
        ]),
      ),
      problems: [...skipped, ...new Set(problems)],
    }
  } catch (error) {
    throw invalid(fileName, describeError(error))
  }
}

/** The intentions of one entry, with the keys of Consul's list of intentions. */
function rulesOf(raw: unknown, index: number, fileName: string, skipped: string[]): Entry[] {
  const entry = withConsulKeys(raw)
  if (!isRecord(entry)) throw invalid(fileName, `it holds ${quoteForMessage(raw)} as an entry`, HCL)
  if ('SourceName' in entry) return [entry]
  const { Kind: kind } = entry
  if (kind !== 'service-intentions' && kind !== 'ServiceIntentions') {
    if (typeof kind !== 'string')
      throw invalid(fileName, `its entry ${index + 1} has no Kind`, 'It must be service-intentions')
    skipped.push(`Entry ${index + 1} is left out: it is of kind ${quoteForMessage(kind)}`)
    return []
  }
  return rulesOfEntry(kind === 'ServiceIntentions' ? fromKubernetes(entry) : entry, index, fileName)
}

function rulesOfEntry(entry: Entry, index: number, fileName: string): Entry[] {
  const {
    Kind: _kind,
    Name: name,
    Sources: sources,
    Namespace: namespace,
    Partition: partition,
    Meta: _meta,
    Hash: _hash,
    RaftIndex: _raft,
    CreateIndex: _created,
    ModifyIndex: _modified,
    // JWT requirements, and whatever we do not know: a rule with them denies.
    ...others
  } = entry
  if (typeof name !== 'string' || name === '')
    throw invalid(fileName, `its entry ${index + 1} has no Name`)
  if (!Array.isArray(sources)) throw invalid(fileName, `its entry for ${name} has no Sources`)
  return sources.map((source: unknown): Entry => {
    if (!isRecord(source) || typeof source['Name'] !== 'string')
      throw invalid(fileName, `a source in its entry for ${name} has no Name`)
    const own = Object.entries(source).flatMap(([key, value]): [string, unknown][] => {
      const renamed = SOURCE_KEYS[key] ?? key
      return key.startsWith('Legacy') ? [] : [[renamed, value]]
    })
    return {
      ...others,
      ...Object.fromEntries(own),
      DestinationName: name,
      DestinationNS: namespace,
      DestinationPartition: partition,
    }
  })
}

const SOURCE_KEYS: Readonly<Record<string, string>> = {
  Name: 'SourceName',
  Namespace: 'SourceNS',
  Partition: 'SourcePartition',
  Peer: 'SourcePeer',
  SamenessGroup: 'SourceSamenessGroup',
  Type: 'SourceType',
}

/** An object of Consul's operator: the destination and its sources are below `spec`. */
export function fromKubernetes(entry: Entry): Entry {
  const spec = isRecord(entry['Spec']) ? entry['Spec'] : {}
  const { Destination: destination, Sources: sources, ...others } = spec
  const { Name: name, Namespace: namespace } = isRecord(destination) ? destination : {}
  return { ...others, Name: name, Namespace: namespace, Sources: sources }
}

const ACRONYMS: Readonly<Record<string, string>> = { http: 'HTTP', jwt: 'JWT', id: 'ID' }

/** Keys as Consul's API writes them: HCL has `path_prefix`, Kubernetes `pathPrefix`. */
export function withConsulKeys(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withConsulKeys)
  if (!isRecord(value)) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key
        .split('_')
        .map((word) => ACRONYMS[word] ?? word.charAt(0).toUpperCase() + word.slice(1))
        .join(''),
      withConsulKeys(inner),
    ]),
  )
}

/** The documents of a text, which YAML separates by lines `---`. @throws MeshError HM_USAGE_INTENTIONS */
export function parseDocuments(text: string, fileName: string): unknown[] {
  return text
    .split(/^---[ \t]*$/m)
    .filter((part) => part.trim() !== '')
    .map((part) => {
      const parsed = parseYamlDocument(part, z.unknown())
      if ('problems' in parsed)
        throw invalid(
          fileName,
          `\n  ${formatProblems(fileName, parsed.problems).join('\n  ')}`,
          HCL,
        )
      return parsed.document.value
    })
}

const HCL =
  'JSON and YAML are read, HCL is not: consul config read -kind service-intentions -name db prints JSON'

function invalid(fileName: string, reason: string, hint?: string): MeshError {
  return new MeshError('HM_USAGE_INTENTIONS', `Cannot read intentions of ${fileName}: ${reason}`, {
    ...(hint !== undefined && { hint }),
  })
}
