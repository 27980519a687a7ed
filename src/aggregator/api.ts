/**
 * The paths of the API: what each takes and answers. The server routes by this table, and the OpenAPI description is
 * made from it, so that neither has a path that the other lacks.
 */
import type { FleetDocuments } from '../model/fleet.ts'
import type { FleetReader } from './fleet-reader.ts'
import { type ParameterName, parseQuery } from './query.ts'

/** Where the documents are. */
const API_PREFIX = '/api/v1'

/** The live view. */
export const LIVE_PATH: string = `${API_PREFIX}/live`

/** The description of the API. */
export const OPENAPI_PATH: string = `${API_PREFIX}/openapi.json`

/** One document. */
export interface ApiDocument {
  readonly name: keyof FleetDocuments
  readonly summary: string
  readonly parameters: readonly ParameterName[]
  /** Of {@link parameters}. */
  readonly required?: readonly ParameterName[]
  /**
   * Makes the document that a query asks for.
   * @throws MeshError HM_API_QUERY_INVALID, HM_SERVICE_NOT_FOUND, HM_HOST_NOT_FOUND
   */
  readonly make: (reader: FleetReader, query: string, signal: AbortSignal) => Promise<object>
}

const span = ['at', 'window'] as const

/** All documents, by path. */
export const apiDocuments: ReadonlyMap<string, ApiDocument> = new Map(
  (
    [
      {
        name: 'overview',
        summary: 'The fleet in one look',
        parameters: span,
        make: (reader, query) => reader.overview(parseQuery(query, span)),
      },
      {
        name: 'graph',
        summary: 'Who calls whom',
        parameters: [...span, 'group'],
        make: (reader, query) => reader.graph(parseQuery(query, [...span, 'group'])),
      },
      {
        name: 'services',
        summary: 'All services',
        parameters: span,
        make: (reader, query) => reader.services(parseQuery(query, span)),
      },
      {
        name: 'service',
        summary: 'One service: instances, callers, destinations, intentions',
        parameters: ['name', ...span],
        required: ['name'],
        make: (reader, query) => reader.service(parseQuery(query, ['name', ...span])),
      },
      {
        name: 'hosts',
        summary: 'All hosts',
        parameters: span,
        make: (reader, query) => reader.hosts(parseQuery(query, span)),
      },
      {
        name: 'host',
        summary: 'One host',
        parameters: ['name', ...span],
        required: ['name'],
        make: (reader, query) => reader.host(parseQuery(query, ['name', ...span])),
      },
      {
        name: 'history',
        summary: 'Figures over time, of the fleet, a pair, a service or a host',
        parameters: ['source', 'destination', 'host', 'from', 'to', 'step'],
        make: (reader, query, signal) =>
          reader.history(
            parseQuery(query, ['source', 'destination', 'host', 'from', 'to', 'step']),
            signal,
          ),
      },
      {
        name: 'risks',
        summary: 'What will break, before it does; of the last hour unless given',
        parameters: span,
        make: (reader, query) => reader.risks(parseQuery(query, span)),
      },
      {
        name: 'versions',
        summary: 'What runs where; pairs of the last hour unless given',
        parameters: span,
        make: (reader, query) => reader.versions(parseQuery(query, span)),
      },
    ] satisfies ApiDocument[]
  ).map((document): [string, ApiDocument] => [`${API_PREFIX}/${document.name}`, document]),
)
