/**
 * Reads a small text file that a person wrote: never blocks on a pipe, never reads without bound, and
 * says plainly what is wrong with the file.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { errorCode, MeshError } from './errors.ts'

/** A file's text, and the facts by which a later change of it is seen. */
export interface TextFile {
  readonly text: string
  /** Changes when the file is written or replaced; compare for equality only. */
  readonly signature: string
  readonly mtimeMs: number
  /** Permission bits, as in 0o644. */
  readonly mode: number
}

/** Facts of a file as `stat` gives them. */
export interface FileFacts {
  readonly dev: number
  readonly ino: number
  readonly size: number
  readonly mtimeMs: number
  readonly ctimeMs: number
}

/** What {@link TextFile.signature} is made of. */
export function fileSignature(facts: FileFacts): string {
  return [facts.dev, facts.ino, facts.size, facts.mtimeMs, facts.ctimeMs].join(':')
}

/** Why the operating system did not let us, for the usual reasons. */
const REASONS: Record<string, string> = {
  ENOENT: 'no such file',
  EACCES: 'permission denied',
  ENOTDIR: 'a part of the path is not a directory',
  ELOOP: 'too many symbolic links',
  ENXIO: 'it is not a regular file',
}

/** What to do about it. */
const HINTS: Record<string, string> = {
  ENOENT: 'Correct the path, or put the file there',
  EACCES:
    'Let the user who reads it (hostmesh, where the unit runs the daemon) read it: chgrp and chmod g+r',
}

/**
 * Reads `path` as UTF-8 (a byte order mark is dropped).
 * @throws MeshError HM_FILE_UNREADABLE when it is missing, not a regular file, larger than `maxBytes`,
 * not UTF-8, or, when we are root, writable by everybody.
 */
export function readTextFile(path: string, maxBytes: number): TextFile {
  let descriptor: number
  try {
    // Without O_NONBLOCK, opening a FIFO waits for a writer for ever.
    descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (thrown) {
    const code = errorCode(thrown)
    throw unreadable(path, REASONS[code] ?? code, thrown)
  }
  try {
    return readOpen(path, descriptor, maxBytes)
  } finally {
    closeSync(descriptor)
  }
}

function readOpen(path: string, descriptor: number, maxBytes: number): TextFile {
  const facts = fstatSync(descriptor)
  if (facts.isDirectory()) throw unreadable(path, 'it is a directory')
  if (!facts.isFile()) throw unreadable(path, 'it is not a regular file')
  if ((facts.mode & 0o002) !== 0 && process.getuid?.() === 0)
    throw unreadable(path, 'everybody may write to it; run: chmod o-w FILE')
  const bytes = Buffer.allocUnsafe(maxBytes + 1)
  let length = 0
  while (length < bytes.length) {
    const read = readSync(descriptor, bytes, length, bytes.length - length, null)
    if (read === 0) break
    length += read
  }
  if (length > maxBytes) throw unreadable(path, `it is larger than ${maxBytes} bytes`)
  return {
    text: decode(path, bytes.subarray(0, length)),
    signature: fileSignature(facts),
    mtimeMs: facts.mtimeMs,
    mode: facts.mode & 0o7777,
  }
}

function decode(path: string, bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (thrown) {
    throw unreadable(path, 'it is not UTF-8 text', thrown)
  }
}

function unreadable(path: string, reason: string, cause?: unknown): MeshError {
  const code = errorCode(cause)
  const hint = HINTS[code]
  return new MeshError('HM_FILE_UNREADABLE', `Cannot read ${path}: ${reason}`, {
    // Where we have words of our own, the system's would say it a second time.
    cause: REASONS[code] === undefined ? cause : Object.assign(new Error(reason), { code }),
    ...(hint !== undefined && { hint }),
  })
}
