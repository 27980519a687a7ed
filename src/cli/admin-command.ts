/**
 * Common parts of the commands that show one admin document: the address, fetching, checking.
 */
import { Option } from 'commander'
import { member } from '../lib/json-value.ts'
import { DEFAULT_ADDRESS, fetchDocument } from './admin-client.ts'
import type { ReadingOptions } from './reading-command.ts'

/** The options of such a command, its own and the global ones. */
export interface AdminOptions extends ReadingOptions {
  readonly addr: string
}

/** The global option with the address of the daemon. */
export function addressOption(): Option {
  return new Option('--addr <address>', "the daemon's admin socket")
    .env('HOSTMESH_ADDR')
    .default(DEFAULT_ADDRESS)
}

/** Fetches a document that must have a list under `listKey`. */
export function fetchList<T>(address: string, path: string, listKey: keyof T & string): Promise<T> {
  return fetchDocument(address, path, (value): value is T => hasKey(value, listKey, Array.isArray))
}

/** Whether `value` is an object with this key, and `isOfKind` accepts its value. */
export function hasKey(
  value: unknown,
  key: string,
  isOfKind: (field: unknown) => boolean,
): boolean {
  return isOfKind(member(value, key))
}

/** Prints lines. */
export function printLines(lines: readonly string[]): void {
  console.log(lines.join('\n'))
}

/** Prints a document unchanged. */
export function printJson(document: unknown): void {
  console.log(JSON.stringify(document, null, 2))
}
