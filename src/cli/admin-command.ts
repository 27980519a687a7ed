/**
 * Common parts of the commands that show one admin document: options, fetching, output as table or JSON.
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

/** The global option with the address of the daemon. */
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

/** A command with `-o`; the caller adds arguments and the action. */
export function adminCommand(name: string, description: string): Command {
  return new Command(name).description(description).addOption(outputOption())
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
