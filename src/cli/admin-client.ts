/**
 * Client of the daemon's admin API over its Unix socket. One request per call, bounded in time and size.
 */
import { statSync } from 'node:fs'
import { type ErrorCode, errorCode, MeshError } from '../lib/errors.ts'
import { callHttp, type JsonAnswer, readError } from '../lib/json-http.ts'
import { member, parseJson } from '../lib/json-value.ts'
import { http } from '../lib/node-http.ts'

/** The default address of the daemon. */
export const DEFAULT_ADDRESS = 'unix:///run/hostmesh/admin.sock'

const DEADLINE_MS = 15_000

/** The daemon's own bound on unfetched answers; no valid answer is larger. */
const MAX_ANSWER_BYTES = 64 * 1_024 * 1_024

/** The path in `unix:///path`; undefined for any other address. */
export function socketPathOf(address: string): string | undefined {
  const match = /^unix:\/\/(\/.+)$/.exec(address)
  return match?.[1]
}

/**
 * Fetches one JSON document. `isDocument` checks just enough to recognize it.
 * @throws MeshError HM_USAGE_ADDRESS for a malformed address or a path that is not a socket, HM_ADMIN_UNREACHABLE when
 *   no daemon answers, HM_ADMIN_DENIED when this user may not use the socket, HM_ADMIN_REFUSED when the daemon answers
 *   with an error (the error's own code if the question was wrong, or names something that does not exist),
 *   HM_ADMIN_ANSWER_UNREADABLE when the answer is not such a document.
 */
export async function fetchDocument<T>(
  address: string,
  path: string,
  isDocument: (value: unknown) => value is T,
): Promise<T> {
  const { socketPath, status, bytes } = await call(address, path)
  const body = parseJson(bytes)
  if (status !== 200) throw refused(socketPath, path, { status, body })
  if (isDocument(body)) return body
  throw new MeshError(
    'HM_ADMIN_ANSWER_UNREADABLE',
    `Cannot read the answer of the daemon at ${socketPath} to ${path}`,
    { hint: 'The daemon may be of another version: compare hostmesh version and hostmesh status' },
  )
}

/** Fetches a text, such as `/metrics`. @throws MeshError as {@link fetchDocument} */
export async function fetchText(address: string, path: string): Promise<string> {
  const { socketPath, status, bytes } = await call(address, path)
  if (status === 200) return bytes.toString('utf8')
  throw refused(socketPath, path, { status, body: parseJson(bytes) })
}

async function call(
  address: string,
  path: string,
): Promise<{ readonly socketPath: string; readonly status: number; readonly bytes: Buffer }> {
  const socketPath = socketPathOf(address)
  if (socketPath === undefined) {
    throw new MeshError('HM_USAGE_ADDRESS', `Cannot use the address ${JSON.stringify(address)}`, {
      hint: `It must be unix:///path, such as ${DEFAULT_ADDRESS}`,
    })
  }
  const signal = AbortSignal.timeout(DEADLINE_MS)
  const options = { socketPath, path, agent: false, signal }
  const answer = await callHttp(http.request, options, { maxBytes: MAX_ANSWER_BYTES }).catch(
    (thrown: unknown) => {
      throw connectionFailed(socketPath, thrown)
    },
  )
  return { socketPath, ...answer }
}

function connectionFailed(socketPath: string, cause: unknown): MeshError {
  const code = errorCode(cause)
  if (code === 'EACCES' || code === 'EPERM') {
    return new MeshError(
      'HM_ADMIN_DENIED',
      `Cannot use the admin socket ${socketPath}: permission denied`,
      {
        hint: "Run this as root, or as a member of the socket's group (ls -l shows it)",
      },
    )
  }
  if (isNoSocket(socketPath))
    return new MeshError('HM_USAGE_ADDRESS', `Cannot use ${socketPath}: it is not a socket`, {
      hint: `It must be the admin socket of a daemon, such as ${DEFAULT_ADDRESS}`,
    })
  const hint = 'See systemctl status hostmesh; for another socket use --addr or HOSTMESH_ADDR'
  if (code === 'ENOENT' || code === 'ECONNREFUSED') {
    return new MeshError(
      'HM_ADMIN_UNREACHABLE',
      `Cannot reach the daemon at ${socketPath}: nothing listens there`,
      { hint },
    )
  }
  const isLate = cause instanceof Error && cause.name === 'AbortError'
  return new MeshError(
    'HM_ADMIN_UNREACHABLE',
    isLate
      ? `Cannot get an answer from the daemon at ${socketPath} within ${DEADLINE_MS / 1_000} s`
      : `Cannot get an answer from the daemon at ${socketPath}`,
    { ...(!isLate && { cause }), hint },
  )
}

/** Whether the path exists and is not a socket. */
function isNoSocket(path: string): boolean {
  try {
    return !statSync(path).isSocket()
  } catch {
    return false
  }
}

function refused(socketPath: string, path: string, { status, body }: JsonAnswer): MeshError {
  const { code, message, hint } = readError(body)
  // Errors about the question itself are returned unchanged.
  if (message !== undefined && code !== undefined && isAboutQuestion(code))
    return new MeshError(code, message, { ...(hint !== undefined && { hint }) })
  const reason = message ?? `HTTP status ${status}`
  return new MeshError(
    'HM_ADMIN_REFUSED',
    `Cannot get ${path} from the daemon at ${socketPath}: ${reason}`,
  )
}

function isAboutQuestion(code: ErrorCode): boolean {
  return code.startsWith('HM_USAGE_') || code === 'HM_CONNECTION_NOT_FOUND'
}

/** The process that answers at an admin address; undefined when none does. */
export async function daemonPid(address: string): Promise<number | undefined> {
  const hasPid = (value: unknown): value is { readonly pid: number } =>
    typeof member(value, 'pid') === 'number'
  return fetchDocument(address, '/v1/status', hasPid).then(
    (status) => status.pid,
    () => undefined,
  )
}
