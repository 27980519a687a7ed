/**
 * Writes whole files: a reader sees the old content or the new, never a part, and never a key with the
 * permissions of the umask.
 */
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fsyncSync,
  linkSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'

/** How {@link writeFileAtomically} writes. */
export interface AtomicWriteOptions {
  /** Permission bits, whatever the umask is. */
  readonly mode: number
  /** With `fail` an existing file is left alone and EEXIST is thrown. */
  readonly existing: 'replace' | 'fail'
}

/**
 * Writes `path` through a temporary file beside it. When we are root the file gets the owner of its
 * directory, so that a key issued by root can be read by the daemon's own user.
 * @throws what node:fs throws; the temporary file is gone then
 */
export function writeFileAtomically(
  path: string,
  content: string | Uint8Array,
  options: AtomicWriteOptions,
): void {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`
  const descriptor = openSync(temporary, 'wx', 0o600)
  try {
    try {
      fchmodSync(descriptor, options.mode)
      if (process.getuid?.() === 0) {
        const owner = statSync(dirname(path))
        fchownSync(descriptor, owner.uid, owner.gid)
      }
      writeFileSync(descriptor, content)
      fsyncSync(descriptor)
    } finally {
      closeSync(descriptor)
    }
    // link() refuses where rename() would replace.
    if (options.existing === 'replace') renameSync(temporary, path)
    else linkSync(temporary, path)
  } finally {
    rmSync(temporary, { force: true })
  }
}

/** Has the names in a folder on the disk: until then a power cut may bring a replaced file back. */
export function syncFolder(path: string): void {
  const folder = openSync(path, 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
