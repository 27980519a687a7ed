/**
 * What the commands that show one admin document have in common: options, fetching, table or JSON.
 */
import { Command, Option } from 'commander'
import { member } from '../lib/json-value.ts'
import { DEFAULT_ADDRESS, fetchDocument } from './admin-client.ts'

/** How a document is printed. */
export type OutputFormat = 'table' | 'json'

/** The options of such a command, its own and the global ones. */
export interface AdminOptions {
  readonly addr: string
  readonly output: OutputFormat
}

/** The global option that says where the daemon is. */
export function addressOption(): Option {
  return new Option('--addr <address>', "the daemon's admin socket")
    .env('HOSTMESH_ADDR')
    .default(DEFAULT_ADDRESS)
}

/** The option `-o table|json`. */
export function outputOption(): Option {
  return new Option('-o, --output <format>', 'output format')
    .choices(['table', 'json'])
    .default('table')
}

/** A command with `-o`; the caller adds arguments and action. */
export function adminCommand(name: string, description: string): Command {
  return new Command(name).description(description).addOption(outputOption())
}

/** Fetches a document of which `listKey` must be a list. */
export function fetchList<T>(address: string, path: string, listKey: keyof T & string): Promise<T> {
  return fetchDocument(address, path, (value): value is T => hasKey(value, listKey, Array.isArray))
}

/** Whether `value` is an object with that key, of that kind. */
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

/** Prints a document as it came. */
export function printJson(document: unknown): void {
  console.log(JSON.stringify(document, null, 2))
}
