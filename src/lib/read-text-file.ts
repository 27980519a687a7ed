/**
 * Reads a small text file written by a person: never blocks on a pipe, limits the size, and reports
 * clearly what is wrong with the file.
 */
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { errorCode, MeshError } from './errors.ts'

/** A file's text, and the attributes by which a later change is detected. */
export interface TextFile {
  readonly text: string
  /** Changes when the file is written or replaced; compare for equality only. */
  readonly signature: string
  readonly mtimeMs: number
  /** Permission bits, as in 0o644. */
  readonly mode: number
}

/** Attributes of a file as returned by `stat`. */
export interface FileFacts {
  readonly dev: number
  readonly ino: number
  readonly size: number
  readonly mtimeMs: number
  readonly ctimeMs: number
}

/** Computes {@link TextFile.signature}. */
export function fileSignature(facts: FileFacts): string {
  return [facts.dev, facts.ino, facts.size, facts.mtimeMs, facts.ctimeMs].join(':')
}

/** Sentences for the operating system's usual errors. */
const REASONS: Record<string, string> = {
  ENOENT: 'no such file',
  EACCES: 'permission denied',
  ENOTDIR: 'a part of the path is not a directory',
  ELOOP: 'too many symbolic links',
  ENXIO: 'it is not a regular file',
}

/** Hints for these errors. */
const HINTS: Record<string, string> = {
  ENOENT: 'Correct the path, or put the file there',
  EACCES:
    'Let the user who reads it (hostmesh, where the unit runs the daemon) read it: chgrp and chmod g+r',
}

/**
 * Reads `path` as UTF-8 (a byte order mark is dropped).
 * @throws MeshError HM_FILE_UNREADABLE when it is missing, not a regular file, larger than `maxBytes`,
 * not UTF-8, or, for a root process, writable by everybody.
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
    // If we have a sentence of our own, the system's would repeat it.
    cause: REASONS[code] === undefined ? cause : Object.assign(new Error(reason), { code }),
    ...(hint !== undefined && { hint }),
  })
}
