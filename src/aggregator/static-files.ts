/**
 * The files of the dashboard, read once into memory: no request reaches a disk, so no path in a request can lead out of
 * the directory.
 */
import { createHash } from 'node:crypto'
import { globSync, readFileSync, statSync } from 'node:fs'
import { extname, join } from 'node:path'
import { gzipSync } from 'node:zlib'

/** A file as it is sent. */
export interface StaticFile {
  readonly bytes: Buffer
  /** Undefined where it is not smaller. */
  readonly gzip: Buffer | undefined
  readonly contentType: string
  readonly etag: string
  /** Whether its name changes with its content. */
  readonly isImmutable: boolean
}

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.ico': 'image/x-icon',
  '.json': 'application/json',
  '.webmanifest': 'application/manifest+json',
  '.woff2': 'font/woff2',
  '.txt': 'text/plain; charset=utf-8',
}

const MAX_FILES = 500
const MAX_BYTES = 32 * 1_024 * 1_024

/**
 * The files below a directory by their path in a URL, `/` for `index.html`; empty where there is no such directory.
 * Source maps and files of other types are left out.
 * @throws RangeError when there is more than any dashboard has
 */
export function readStaticFiles(directory: string): ReadonlyMap<string, StaticFile> {
  const files = new Map<string, StaticFile>()
  let bytes = 0
  for (const name of globSync('**/*', { cwd: directory }).toSorted()) {
    const contentType = TYPES[extname(name)]
    const path = join(directory, name)
    if (contentType === undefined || !statSync(path).isFile()) continue
    const content = readFileSync(path)
    bytes += content.length
    if (files.size >= MAX_FILES || bytes > MAX_BYTES)
      throw new RangeError(`${directory} has more than ${MAX_FILES} files or ${MAX_BYTES} bytes`)
    const gzip = gzipSync(content, { level: 9 })
    const file: StaticFile = {
      bytes: content,
      gzip: gzip.length < content.length ? gzip : undefined,
      contentType,
      etag: `"${createHash('sha256').update(content).digest('base64url').slice(0, 22)}"`,
      isImmutable: /[-.][A-Za-z0-9_]{8,}\.\w+$/.test(name) && !name.endsWith('.html'),
    }
    files.set(`/${name}`, file)
    if (name === 'index.html') files.set('/', file)
  }
  return files
}
