/**
 * Client of the aggregator's API, over its unix socket or over HTTP. One request per call, bounded in time and size;
 * redirects are not followed, so a token goes to nobody else.
 */
import type { RequestOptions } from 'node:http'
import type * as nodeHttps from 'node:https'
import { errorCode, MeshError } from '../lib/errors.ts'
import { BodyTooLong, callJson, type JsonAnswer, readError } from '../lib/json-http.ts'
import { member } from '../lib/json-value.ts'
import { http } from '../lib/node-http.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import type { FleetDocuments } from '../model/fleet.ts'
import { socketPathOf } from './admin-client.ts'
import { paint } from './render/table.ts'

/** The default address of the aggregator. */
export const DEFAULT_AGGREGATOR = '/run/hostmesh-aggregator/api.sock'

/** How the aggregator is reached. */
export interface FleetAddress {
  /** A path, `unix:///path`, or a URL. */
  readonly aggregator: string
  /** File with a bearer token. */
  readonly tokenFile?: string
  /** Roots for an https address, instead of the system's; PEM. */
  readonly caFile?: string
  /** Client certificate and its key, PEM. */
  readonly certFile?: string
  readonly keyFile?: string
}

/** A document by name. */
export type FleetDocumentName = keyof FleetDocuments

const DEADLINE_MS = 15_000

/** A graph of 2,000 nodes and 10,000 edges is about 10 MB. */
const MAX_ANSWER_BYTES = 64 * 1_024 * 1_024

const MAX_FILE_BYTES = 1_024 * 1_024

/** By which a document is recognized, beside its coverage. */
const KEYS: Readonly<Record<FleetDocumentName, string>> = {
  overview: 'store',
  graph: 'edges',
  services: 'services',
  service: 'instances',
  hosts: 'hosts',
  host: 'host',
  history: 'series',
  risks: 'risks',
  versions: 'versions',
}

/**
 * Fetches a document; parameters that are undefined are left out.
 * @throws MeshError HM_USAGE_ADDRESS for a malformed address or a token that would go out in plaintext,
 *   HM_FLEET_UNREACHABLE when no aggregator answers, HM_FLEET_DENIED when this user may not ask, HM_FLEET_UNTRUSTED when
 *   its certificate does not hold, HM_FLEET_REFUSED when it answers with an error (the error's own code if the question
 *   was wrong, or names something that does not exist), HM_FLEET_ANSWER_UNREADABLE when the answer is no such document.
 */
export async function fetchFleet<Name extends FleetDocumentName>(
  address: FleetAddress,
  name: Name,
  query: Readonly<Record<string, string | undefined>> = {},
): Promise<FleetDocuments[Name]> {
  const parameters = new URLSearchParams()
  for (const [key, value] of Object.entries(query))
    if (value !== undefined) parameters.set(key, value)
  const text = parameters.toString()
  const path = `/api/v1/${name}${text === '' ? '' : `?${text}`}`
  const { request, options, headers } = targetOf(address)
  const answer = await callJson(
    request,
    {
      ...options,
      path: `${options.path ?? ''}${path}`,
      agent: false,
      signal: AbortSignal.timeout(DEADLINE_MS),
    },
    { maxBytes: MAX_ANSWER_BYTES, headers },
  ).catch((thrown: unknown) => {
    throw connectionFailed(address, thrown)
  })
  if (answer.status !== 200) throw refused(address, path, answer)
  if (isDocument(name, answer.body)) return answer.body
  throw new MeshError(
    'HM_FLEET_ANSWER_UNREADABLE',
    `Cannot read the answer of the aggregator at ${address.aggregator} to ${path}`,
    { hint: 'Something else may listen there, or an aggregator of another version' },
  )
}

/** Checks just enough to recognize the document. */
export function isDocument<Name extends FleetDocumentName>(
  name: Name,
  body: unknown,
): body is FleetDocuments[Name] {
  const notes = member(member(body, 'coverage'), 'notes')
  return Array.isArray(notes) && typeof member(body, KEYS[name]) === 'object'
}

interface Target {
  readonly request: typeof http.request
  readonly options: RequestOptions & nodeHttps.RequestOptions
  readonly headers: Readonly<Record<string, string>>
}

function targetOf(address: FleetAddress): Target {
  const { aggregator, tokenFile } = address
  const token = tokenFile === undefined ? undefined : readToken(tokenFile)
  const headers: Record<string, string> =
    token === undefined ? {} : { authorization: `Bearer ${token}` }
  const socketPath = aggregator.startsWith('/') ? aggregator : socketPathOf(aggregator)
  if (socketPath !== undefined) return { request: http.request, options: { socketPath }, headers }
  const url = URL.parse(aggregator)
  const isPlainAddress = url?.username === '' && url.search === '' && url.hash === ''
  if (url === null || !isPlainAddress || !/^https?:$/.test(url.protocol))
    throw new MeshError(
      'HM_USAGE_ADDRESS',
      `Cannot use the address ${JSON.stringify(aggregator)} of an aggregator`,
      { hint: `It must be a socket such as ${DEFAULT_AGGREGATOR}, or https://host:port` },
    )
  const options = {
    hostname: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port,
    path: url.pathname.replace(/\/$/, ''),
  }
  if (url.protocol === 'http:') {
    if (token !== undefined && !isLoopback(options.hostname))
      throw new MeshError(
        'HM_USAGE_ADDRESS',
        `Cannot send the token to ${aggregator}: everybody on the way could read it`,
        { hint: 'Use https://, or the unix socket on the host of the aggregator' },
      )
    return { request: http.request, options, headers }
  }
  const https: typeof nodeHttps = process.getBuiltinModule('node:https')
  const { caFile, certFile, keyFile } = address
  const pem = (file: string): string => readTextFile(file, MAX_FILE_BYTES).text
  const tls = {
    ...(caFile !== undefined && { ca: pem(caFile) }),
    ...(certFile !== undefined && { cert: pem(certFile) }),
    ...(keyFile !== undefined && { key: pem(keyFile) }),
  }
  return { request: https.request, options: { ...options, ...tls }, headers }
}

function readToken(file: string): string {
  const token = readTextFile(file, MAX_FILE_BYTES).text.trim()
  if (/^[\x21-\x7e]{1,4096}$/.test(token)) return token
  throw new MeshError('HM_USAGE_TOKEN', `Cannot use ${file}: it does not hold one token`, {
    hint: 'The file must hold the token of the aggregator in one line, and nothing else',
  })
}

function isLoopback(hostname: string): boolean {
  return hostname === 'localhost' || hostname === '::1' || /^127(\.\d{1,3}){3}$/.test(hostname)
}

const ELSEWHERE =
  'For another address use --aggregator or HOSTMESH_AGGREGATOR; on its host see systemctl status hostmesh-aggregator'

function connectionFailed({ aggregator }: FleetAddress, cause: unknown): MeshError {
  const code = errorCode(cause)
  if (code === 'EACCES' || code === 'EPERM')
    return new MeshError('HM_FLEET_DENIED', `Cannot use ${aggregator}: permission denied`, {
      hint: "Run this as root, or as a member of the socket's group (ls -l shows it)",
    })
  if (code === 'ENOENT' || code === 'ECONNREFUSED')
    return new MeshError(
      'HM_FLEET_UNREACHABLE',
      `Cannot reach the aggregator at ${aggregator}: nothing listens there`,
      { hint: ELSEWHERE },
    )
  if (/^(ERR_TLS|ERR_SSL|CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|EPROTO)/.test(code))
    return new MeshError('HM_FLEET_UNTRUSTED', `Cannot trust the aggregator at ${aggregator}`, {
      cause,
      hint: 'Give the roots of its certificate with --ca-file, and the name that is in it as the address',
    })
  if (cause instanceof BodyTooLong)
    return new MeshError(
      'HM_FLEET_ANSWER_UNREADABLE',
      `Cannot read the answer of the aggregator at ${aggregator}`,
      { cause },
    )
  const isLate = cause instanceof Error && cause.name === 'AbortError'
  return new MeshError(
    'HM_FLEET_UNREACHABLE',
    isLate
      ? `Cannot get an answer from the aggregator at ${aggregator} within ${DEADLINE_MS / 1_000} s`
      : `Cannot get an answer from the aggregator at ${aggregator}`,
    { ...(!isLate && { cause }), hint: ELSEWHERE },
  )
}

function refused({ aggregator }: FleetAddress, path: string, answer: JsonAnswer): MeshError {
  const { code, message, hint } = readError(answer.body)
  // The text is from the network: nothing in it may steer the terminal.
  const said = message === undefined ? undefined : paint(message)
  if (answer.status === 401)
    return new MeshError('HM_FLEET_DENIED', `The aggregator at ${aggregator} does not know you`, {
      hint: 'Give a token with --token-file, or a client certificate with --cert-file and --key-file',
    })
  if (answer.status === 403)
    return new MeshError(
      'HM_FLEET_DENIED',
      `The aggregator at ${aggregator} denies this: ${said ?? 'your role does not allow it'}`,
      { hint: 'Ask its operator for a role that may see this' },
    )
  if (said !== undefined && code !== undefined && /^HM_(USAGE_\w+|\w+_NOT_FOUND)$/.test(code))
    return new MeshError(code, said, { ...(hint !== undefined && { hint: paint(hint) }) })
  return new MeshError(
    'HM_FLEET_REFUSED',
    `Cannot get ${path} from the aggregator at ${aggregator}: ${said ?? `HTTP status ${answer.status}`}`,
    {
      ...(answer.status >= 300 &&
        answer.status < 400 && { hint: 'Redirects are not followed: give the final address' }),
    },
  )
}
