/**
 * The one way to put a file on disk. A reader finds the old content or the new, never a part, also after a power cut: it
 * is written beside its place and synced, takes its place, and the folder is synced. It has the mode it is given, whatever
 * the umask is, before it has a byte; what root writes belongs to the owner of the folder, so that a daemon with a user of
 * its own can read it. A write that fails leaves nothing behind: half a file may be half a key.
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

/** How {@link writeFileAtomically} writes. */
export interface AtomicWriteOptions {
  /** Permission bits, whatever the umask is. */
  readonly mode: number
  /** With `fail` an existing file is left alone and EEXIST is thrown. */
  readonly existing: 'replace' | 'fail'
}

/** Writes `path`; several may write it at once. @throws what node:fs throws */
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
    // link() refuses where rename() would replace.
    if (options.existing === 'replace') renameSync(temporary, path)
    else linkSync(temporary, path)
  } finally {
    rmSync(temporary, { force: true })
    fsyncSync(folder)
    closeSync(folder)
  }
}

/** The same where a person has named the file: a link is followed, a device or a pipe is written to and stays what it is. */
export function writeNamedFile(path: string, content: string, mode: number): void {
  const there = statSync(path, { throwIfNoEntry: false })
  if (there !== undefined && !there.isFile()) writeFileSync(path, content)
  else
    writeFileAtomically(there === undefined ? path : realpathSync(path), content, {
      mode,
      existing: 'replace',
    })
}

/** Where {@link replaceFile} writes first: what a process that was killed left there may go. */
export function temporaryOf(path: string): string {
  return `${path}.tmp`
}

/**
 * The same without holding up the thread, with mode 0600, for a file that one process writes, one write at a time.
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
