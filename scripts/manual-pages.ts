/**
 * Manual pages of the command tree, one for each command, in the macros of man(7).
 */
import type { Command, Option } from 'commander'

import { examples } from '../src/cli/examples.ts'
import { exitCodes } from '../src/cli/failure.ts'

/** A page of section 1. */
export interface ManualPage {
  /** Such as `hostmesh-ca-token`. */
  readonly name: string
  readonly text: string
}

const EXIT_MEANINGS: Readonly<Record<keyof typeof exitCodes, string>> = {
  ok: 'Done; nothing is wrong.',
  failed: 'Failed, or what was checked has problems.',
  usage: 'The command line or the configuration is wrong.',
  unreachable: 'No daemon, or no aggregator, answers.',
  denied: 'Permission denied.',
  notFound: 'No such service, host or connection.',
}

/** The pages of a program and of all its commands. */
export function manualPages(program: Command): readonly ManualPage[] {
  return pagesOf(program, [program.name()])
}

function pagesOf(command: Command, words: readonly string[]): ManualPage[] {
  const own = { name: words.join('-'), text: pageOf(command, words) }
  const below = command.commands.flatMap((child) => pagesOf(child, [...words, child.name()]))
  return [own, ...below]
}

function pageOf(command: Command, words: readonly string[]): string {
  const name = words.join('-')
  const [line = '', ...more] = usageOf(command)
  const lines = [
    `.TH ${roff(name.toUpperCase())} 1 "" "hostmesh" "hostmesh"`,
    '.SH NAME',
    `${roff(name)} \\- ${roff(lowerFirst(command.description()))}`,
    '.SH SYNOPSIS',
    `.B ${roff(words.join(' '))}`,
    roff([line, ...more].join(' ')),
    ...(command.registeredArguments.length === 0 ? [] : ['.SH ARGUMENTS']),
    ...command.registeredArguments.flatMap((argument) => [
      '.TP',
      `.I ${roff(argument.name())}`,
      roff(sentence(argument.description)),
    ]),
    ...(command.options.length === 0 ? [] : ['.SH OPTIONS']),
    ...command.options.flatMap(optionLines),
    ...(command.commands.length === 0 ? [] : ['.SH COMMANDS']),
    ...command.commands.flatMap((child) => [
      '.TP',
      `.BR ${roff([...words, child.name()].join('-'))} (1)`,
      roff(sentence(child.description())),
    ]),
    ...exampleLines(words.slice(1).join(' ')),
    '.SH EXIT STATUS',
    ...Object.entries(exitCodes).flatMap(([key, code]) => [
      '.TP',
      `.B ${code}`,
      roff(EXIT_MEANINGS[key as keyof typeof exitCodes]),
    ]),
    '.SH SEE ALSO',
    ...(words.length === 1 ? [] : ['.BR hostmesh (1),']),
    'the documents that are installed with the program, first of all docs/cli.md',
  ]
  return `${lines.join('\n')}\n`
}

function usageOf(command: Command): string[] {
  const places = command.registeredArguments.map((argument) => {
    const name = argument.variadic ? `${argument.name()}...` : argument.name()
    return argument.required ? name : `[${name}]`
  })
  return [
    ...(command.options.length === 0 ? [] : ['[options]']),
    ...(command.commands.length === 0 ? [] : ['command']),
    ...places,
  ]
}

function optionLines(option: Option): string[] {
  const { flags, description, argChoices, defaultValue, defaultValueDescription, envVar } = option
  const facts = [
    ...(argChoices === undefined ? [] : [`One of ${argChoices.join(', ')}.`]),
    ...(defaultValue === undefined
      ? []
      : [`Default: ${defaultValueDescription ?? String(defaultValue)}.`]),
    ...(envVar === undefined ? [] : [`Environment: ${envVar}.`]),
    ...(option.mandatory ? ['Required.'] : []),
  ]
  return ['.TP', `.B ${roff(flags)}`, roff([sentence(description), ...facts].join(' '))]
}

function exampleLines(words: string): string[] {
  const own = Object.hasOwn(examples, words) ? (examples[words] ?? []) : []
  if (own.length === 0) return []
  return [
    '.SH EXAMPLES',
    ...own.flatMap(([line, why]) => ['.TP', `.B ${roff(`hostmesh ${line}`)}`, roff(sentence(why))]),
  ]
}

/** Text in which nothing is a request or an escape, and a minus stays one that can be copied. */
function roff(text: string): string {
  const escaped = text.replaceAll('\\', '\\e').replaceAll('-', '\\-').replaceAll("'", '\\(aq')
  return escaped.startsWith('.') ? `\\&${escaped}` : escaped
}

function sentence(text: string): string {
  const first = text.charAt(0).toUpperCase() + text.slice(1)
  return /[.!?]$/.test(first) ? first : `${first}.`
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1)
}
