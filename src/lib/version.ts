/**
 * The version of the running program, from its package.json.
 */
import { readFileSync } from 'node:fs'

/** Such as `0.1.0`. */
export const hostmeshVersion: string = readVersion()

function readVersion(): string {
  // Sources and compiled files have the same depth below the package's root.
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  const manifest: unknown = JSON.parse(text)
  return typeof manifest === 'object' &&
    manifest !== null &&
    'version' in manifest &&
    typeof manifest.version === 'string'
    ? manifest.version
    : 'unknown'
}
