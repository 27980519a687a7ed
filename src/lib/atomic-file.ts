/**
 * Writes files atomically; for every file whose content matters. A reader finds the old content or the new, never a
 * part, also after a power cut: the file is written under a temporary name and synced, renamed, and the folder is
 * synced. It gets its mode, regardless of the umask, before the first byte; files that root writes get the owner of the
 * folder, so that a daemon with its own user can read them. A failed write leaves nothing behind: a partial file may
 * be a partial key.
 */
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fsyncSync,
  linkSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { open, rename, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Options of {@link writeFileAtomically}. */
export interface AtomicWriteOptions {
  /** Permission bits, regardless of the umask. */
  readonly mode: number
  /** With `fail`, an existing file is kept and EEXIST is thrown. */
  readonly existing: 'replace' | 'fail'
}

/** Writes `path`; concurrent writers are allowed. @throws what node:fs throws */
export function writeFileAtomically(
  path: string,
  content: string | Uint8Array,
  options: AtomicWriteOptions,
): void {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`
  const folder = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const descriptor = openSync(temporary, 'wx', 0o600)
    try {
      fchmodSync(descriptor, options.mode)
      if (process.geteuid?.() === 0) {
        const owner = statSync(dirname(path))
        fchownSync(descriptor, owner.uid, owner.gid)
      }
      writeFileSync(descriptor, content)
      fsyncSync(descriptor)
    } finally {
      closeSync(descriptor)
    }
    // link() fails where rename() would replace.
    if (options.existing === 'replace') renameSync(temporary, path)
    else linkSync(temporary, path)
  } finally {
    try {
      rmSync(temporary, { force: true })
      fsyncSync(folder)
    } finally {
      closeSync(folder)
    }
  }
}

/** The same for a file named by a person: follows a link; writes into a device or a pipe instead of replacing it. */
export function writeNamedFile(path: string, content: string | Uint8Array, mode: number): void {
  const there = statSync(path, { throwIfNoEntry: false })
  if (there !== undefined && !there.isFile()) writeFileSync(path, content)
  else
    writeFileAtomically(there === undefined ? path : realpathSync(path), content, {
      mode,
      existing: 'replace',
    })
}

/** The temporary file of {@link replaceFile}. One that a killed process left behind may be removed. */
export function temporaryOf(path: string): string {
  return `${path}.tmp`
}

/**
 * The same asynchronously, with mode 0600, for a file that only one process writes, one write at a time.
 * @throws what node:fs throws
 */
export async function replaceFile(path: string, parts: readonly Uint8Array[]): Promise<void> {
  const temporary = temporaryOf(path)
  await rm(temporary, { force: true })
  try {
    await using file = await open(temporary, 'wx', 0o600)
    const owner = await stat(dirname(path))
    if (process.geteuid?.() === 0) await file.chown(owner.uid, owner.gid)
    for (const part of parts) await file.appendFile(part)
    await file.sync()
    await rename(temporary, path)
  } catch (thrown) {
    await rm(temporary, { force: true }).catch(() => undefined)
    throw thrown
  }
  await using folder = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
  await folder.sync()
}
