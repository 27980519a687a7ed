/**
 * Listening at a unix socket: makes its folder, replaces the file of a process that has ended, and never takes the
 * socket of one that lives.
 */
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { chown, lstat, unlink } from 'node:fs/promises'
import { connect, type Server } from 'node:net'
import { dirname } from 'node:path'
import { errorCode, MeshError } from './errors.ts'

/** A wanted socket, and what messages call it. */
export interface UnixSocketSpec {
  readonly path: string
  /** Permission bits of the socket file, such as 0o660. */
  readonly mode: number
  /** Such as `admin socket`. */
  readonly name: string
  /** The configuration key of its path, such as `admin.socket`. */
  readonly key: string
}

/** Timeout of the probe of a socket file; a live process accepts at once. */
const PROBE_MS = 2_000

/**
 * Makes a server listen at a unix socket.
 * @throws MeshError HM_ADMIN_SOCKET_IN_USE when another process answers at that path, HM_ADMIN_SOCKET_PATH_TAKEN when
 *   a file that is not a socket has that path, HM_ADMIN_SOCKET_FAILED when the socket cannot be made
 */
export async function listenOnUnixSocket(server: Server, spec: UnixSocketSpec): Promise<void> {
  await clearStaleSocket(spec)
  const listening = once(server, 'listening')
  const umask = process.umask()
  try {
    // Callers must be able to reach the socket through the directory; an existing directory keeps its mode.
    process.umask(0o022)
    mkdirSync(dirname(spec.path), { recursive: true, mode: 0o755 })
    // The socket must never exist with a wider mode: listen() binds it under this umask.
    process.umask(0o777 & ~spec.mode)
    server.listen(spec.path)
  } catch (error) {
    throw socketFailed(spec, error)
  } finally {
    process.umask(umask)
  }
  try {
    await listening
  } catch (error) {
    if (errorCode(error) === 'EADDRINUSE') throw socketInUse(spec)
    throw socketFailed(spec, error)
  }
}

/**
 * Gives the file of a socket to a group.
 * @throws MeshError HM_ADMIN_GROUP_DENIED
 */
export async function giveToGroup(
  { path, name, key }: UnixSocketSpec,
  { gid, group }: { readonly gid: number; readonly group: string },
): Promise<void> {
  try {
    // -1 leaves the owner as it is.
    await chown(path, -1, gid)
  } catch (error) {
    throw new MeshError(
      'HM_ADMIN_GROUP_DENIED',
      `Cannot give the ${name} ${path} to group ${group}`,
      {
        cause: error,
        hint: `Make the process's user a member of ${group}, or leave out the group beside ${key}`,
      },
    )
  }
}

/** Removes the socket file of a process that has ended; leaves any other file alone. */
async function clearStaleSocket(spec: UnixSocketSpec): Promise<void> {
  const { path, name, key } = spec
  try {
    const entry = await lstat(path)
    if (!entry.isSocket()) {
      throw new MeshError(
        'HM_ADMIN_SOCKET_PATH_TAKEN',
        `Cannot make the ${name} ${path}: something that is not a socket is there`,
        { hint: `Move it away, or set ${key} to another path` },
      )
    }
    if (await isAnswering(path)) throw socketInUse(spec)
    await unlink(path)
  } catch (error) {
    if (error instanceof MeshError) throw error
    if (errorCode(error) === 'ENOENT') return
    throw socketFailed(spec, error)
  }
}

/** Whether a process listens on that socket. When unsure, returns true: a live socket is never removed. */
function isAnswering(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath)
    const finish = (answer: boolean): void => {
      socket.destroy()
      resolve(answer)
    }
    socket.setTimeout(PROBE_MS, () => finish(true))
    socket.once('connect', () => finish(true))
    socket.once('error', (error) => {
      const code = errorCode(error)
      finish(code !== 'ECONNREFUSED' && code !== 'ENOENT')
    })
  })
}

function socketInUse({ path, name, key }: UnixSocketSpec): MeshError {
  return new MeshError(
    'HM_ADMIN_SOCKET_IN_USE',
    `Cannot make the ${name} ${path}: another process answers there`,
    { hint: `Stop that process first (systemctl stop), or set ${key} to another path` },
  )
}

function socketFailed({ path, name }: UnixSocketSpec, cause: unknown): MeshError {
  return new MeshError('HM_ADMIN_SOCKET_FAILED', `Cannot make the ${name} ${path}`, {
    cause,
    hint: 'Its directory must be one that the process may write to; systemd makes those below /run',
  })
}
