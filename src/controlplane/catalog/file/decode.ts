/**
 * Decodes the text of a catalog file into the catalog's answers. Pure.
 *
 * A file is accepted as a whole or not at all: one wrong intention could allow or deny the wrong connections.
 */
import {
  type DocumentProblem,
  formatProblems,
  parseYamlDocument,
  type YamlDocument,
} from '../../../lib/yaml-document.ts'
import type { Endpoint } from '../../../model/endpoint.ts'
import { type DefaultPolicy, type Intention, precedenceOf } from '../../../model/intention.ts'
import { directRouting } from '../../../model/route.ts'
import type { CatalogPolicy, CatalogService } from '../catalog.ts'
import { decodePermission } from '../permission.ts'
import { type CatalogFile, catalogFileSchema } from './schema.ts'

/** The content of a catalog file. */
export interface CatalogContent {
  readonly serviceByName: ReadonlyMap<string, CatalogService>
  /** Sorted by precedence, highest first, then by names. */
  readonly intentions: readonly Intention[]
  readonly defaultPolicy: DefaultPolicy
}

/** The result of {@link decodeCatalog}: the content, or one line for each problem. */
export type DecodedCatalog =
  | { readonly content: CatalogContent }
  | { readonly problems: readonly string[] }

/** The catalog that contains nothing and allows nothing. */
export const emptyCatalog: CatalogContent = {
  serviceByName: new Map(),
  intentions: [],
  defaultPolicy: 'deny',
}

/** Decodes a catalog. Never throws; `fileName` is used in messages only. */
export function decodeCatalog(text: string, fileName: string): DecodedCatalog {
  const parsed = parseYamlDocument(text, catalogFileSchema)
  if ('problems' in parsed) return { problems: formatProblems(fileName, parsed.problems) }
  const { document } = parsed
  const problems = [...serviceProblems(document), ...intentionProblems(document)]
  if (problems.length > 0) return { problems: formatProblems(fileName, problems) }
  const { services, intentions, defaultPolicy } = document.value
  return {
    content: {
      serviceByName: new Map(
        services.map((service, position) => [service.Name, toService(service, position)]),
      ),
      intentions: intentions.map(toIntention).toSorted(byPrecedence),
      defaultPolicy,
    },
  }
}

/** The rules of one destination, including wildcards, in order of precedence. */
export function policyOf(content: CatalogContent, destination: string): CatalogPolicy {
  return {
    destination,
    intentions: content.intentions.filter(
      (rule) => rule.destination === destination || rule.destination === '*',
    ),
    defaultPolicy: content.defaultPolicy,
  }
}

type FileService = CatalogFile['services'][number]
type FileInstance = FileService['Instances'][number]
type FileIntention = CatalogFile['intentions'][number]

/** @param position in the file: of two services at one address, the first has it */
function toService(service: FileService, position: number): CatalogService {
  const endpoints = service.Instances.map((instance) => toEndpoint(instance, service.Name))
  return {
    name: service.Name,
    protocol: service.Protocol,
    virtualIps: service.VirtualAddresses,
    ...directRouting(service.Name, { connectTimeoutMs: service.ConnectTimeout, endpoints }),
    addresses: endpoints.flatMap(({ application, node }) =>
      application === undefined ? [] : [{ ...application, node, since: position }],
    ),
  }
}

function toEndpoint(instance: FileInstance, serviceName: string): Endpoint {
  const id = instance.ID ?? serviceName
  return {
    key: `${instance.Node}/${id}`,
    service: serviceName,
    datacenter: '',
    priority: 0,
    id,
    node: instance.Node,
    tunnel: { ip: instance.Address, port: instance.Port },
    application:
      instance.ServicePort === undefined
        ? undefined
        : { ip: instance.ServiceAddress ?? instance.Address, port: instance.ServicePort },
    health: instance.Status,
    weight: instance.Weight,
    local: false,
  }
}

function toIntention(rule: FileIntention): Intention {
  const named = {
    source: rule.SourceName,
    destination: rule.DestinationName,
    precedence: precedenceOf(rule.SourceName, rule.DestinationName),
  }
  if (rule.Permissions === undefined) return { ...named, action: rule.Action }
  return {
    ...named,
    action: undefined,
    permissions: rule.Permissions.map(decodePermission).filter(
      (permission) => typeof permission !== 'string',
    ),
  }
}

function byPrecedence(left: Intention, right: Intention): number {
  return (
    right.precedence - left.precedence ||
    compareText(left.destination, right.destination) ||
    compareText(left.source, right.source)
  )
}

function compareText(left: string, right: string): number {
  if (left === right) return 0
  return left < right ? -1 : 1
}

/** Names, instance IDs and virtual addresses must be unique. */
function serviceProblems(document: YamlDocument<CatalogFile>): DocumentProblem[] {
  const problems: DocumentProblem[] = []
  const names = new Map<string, string>()
  const instances = new Map<string, string>()
  const virtualAddresses = new Map<string, string>()
  const claim = (
    taken: Map<string, string>,
    key: string,
    what: string,
    path: readonly (string | number)[],
  ): void => {
    const first = taken.get(key)
    if (first === undefined) taken.set(key, `services[${path[1]}]`)
    else problems.push(document.problemAt(path, `${what} is given twice, first in ${first}`))
  }
  for (const [index, service] of document.value.services.entries()) {
    claim(names, service.Name, `Service ${service.Name}`, ['services', index, 'Name'])
    for (const [position, ip] of service.VirtualAddresses.entries())
      claim(virtualAddresses, ip, `Virtual address ${ip}`, [
        'services',
        index,
        'VirtualAddresses',
        position,
      ])
    for (const [position, instance] of service.Instances.entries()) {
      const key = `${instance.Node}/${instance.ID ?? service.Name}`
      claim(instances, key, `Instance ${key}`, ['services', index, 'Instances', position])
    }
  }
  return problems
}

function intentionProblems(document: YamlDocument<CatalogFile>): DocumentProblem[] {
  const problems: DocumentProblem[] = []
  const indexByPair = new Map<string, number>()
  for (const [index, rule] of document.value.intentions.entries()) {
    const path = ['intentions', index]
    if ((rule.Action === undefined) === (rule.Permissions === undefined))
      problems.push(document.problemAt(path, 'Must have either Action or Permissions'))
    for (const [position, value] of (rule.Permissions ?? []).entries()) {
      const permission = decodePermission(value)
      if (typeof permission === 'string')
        problems.push(
          document.problemAt(
            [...path, 'Permissions', position],
            `This permission ${permission}, which hostmesh cannot obey`,
          ),
        )
    }
    const pair = `${rule.SourceName} -> ${rule.DestinationName}`
    const first = indexByPair.get(pair)
    if (first === undefined) indexByPair.set(pair, index)
    else
      problems.push(
        document.problemAt(path, `Intention ${pair} is given twice, first in intentions[${first}]`),
      )
  }
  return problems
}
