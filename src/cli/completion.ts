/**
 * `hostmesh completion`: completion scripts for shells, made from the command tree. They hold all words themselves, so that
 * no key press starts a process.
 */
import { Argument, Command, type Option } from 'commander'

/** Shells for which there is a script. */
const SHELLS = ['bash', 'zsh', 'fish'] as const

type Shell = (typeof SHELLS)[number]

/** The `completion` command. `tree` gives the whole command tree. */
export function completionCommand(tree: () => Promise<Command>): Command {
  return new Command('completion')
    .description('Print a completion script for a shell')
    .addArgument(new Argument('<shell>', 'your shell').choices(SHELLS))
    .action(async (shell: Shell) => {
      console.log(completionScript(shell, await tree()).trimEnd())
    })
}

/** What can be typed at one place of the tree. */
interface Place {
  /** Words that lead there, such as `ca rotate`; empty at the top. */
  readonly words: string
  readonly commands: readonly Command[]
  readonly options: readonly Option[]
  /** Values of arguments, where they are a list. */
  readonly values: readonly string[]
}

/** The script for a shell. */
export function completionScript(shell: Shell, program: Command): string {
  const address = program.options.filter(({ long }) => long === '--addr')
  const places = placesOf(program, [], address)
  switch (shell) {
    case 'bash':
      return bashScript(places)
    case 'zsh':
      return zshScript(places)
    case 'fish':
      return fishScript(places)
  }
}

function placesOf(command: Command, words: readonly string[], address: readonly Option[]): Place[] {
  return [
    {
      words: words.join(' '),
      commands: command.commands,
      options: words.length === 0 ? command.options : [...command.options, ...address],
      values: command.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []),
    },
    ...command.commands.flatMap((child) => placesOf(child, [...words, child.name()], address)),
  ]
}

function flagsOf({ short, long }: Option): string[] {
  return [short, long].filter((flag) => flag !== undefined)
}

function takesValue({ required, optional }: Option): boolean {
  return required || optional
}

/** Options that take a file or a folder, by the name of their value. */
function isPath(option: Option): boolean {
  return /<(file|dir|directory)>/.test(option.flags)
}

const HEAD = '# Written by hostmesh completion; do not edit.'

/** The flags that take a value: all, those of paths, and lines of a shell's `case` for those with a list of values. */
function valueFlags(places: readonly Place[]): {
  readonly all: string
  readonly paths: string
  readonly choices: string
} {
  const flagsIn = (isWanted: (option: Option) => boolean): string =>
    [...new Set(places.flatMap(({ options }) => options.filter(isWanted).flatMap(flagsOf)))].join(
      '|',
    )
  const choices = places.flatMap(({ words, options }) =>
    options.flatMap((option) =>
      flagsOf(option).flatMap((flag) =>
        option.argChoices === undefined
          ? []
          : [`  ('${words}|${flag}') values='${option.argChoices.join(' ')}' ;;`],
      ),
    ),
  )
  return { all: flagsIn(takesValue), paths: flagsIn(isPath), choices: choices.join('\n') }
}

function bashScript(places: readonly Place[]): string {
  const flags = valueFlags(places)
  const cases = places.map(({ words, commands, options, values }) => {
    const names = [...commands.map((command) => command.name()), ...values]
    return `    '${words}') words='${names.join(' ')}' flags='${[...options.flatMap(flagsOf), '--help'].join(' ')}' ;;`
  })
  return `${HEAD}
_hostmesh() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]}
  local place= word index words= flags= values=
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=\${COMP_WORDS[index]}
    case "$word" in
    ${flags.all}) index=$((index + 1)); continue ;;
    esac
    case "$place|$word" in
    ${stepsOf(places).join('|')}) place="\${place:+$place }$word" ;;
    esac
  done
  case "$place|$previous" in
${flags.choices}
  esac
  if [ -n "$values" ]; then
    COMPREPLY=($(compgen -W "$values" -- "$current"))
    return
  fi
  case "$previous" in
  ${flags.paths}) COMPREPLY=($(compgen -f -- "$current")); return ;;
  ${flags.all}) COMPREPLY=(); return ;;
  esac
  case "$place" in
${cases.join('\n')}
  esac
  case "$current" in
  -*) COMPREPLY=($(compgen -W "$flags" -- "$current")) ;;
  *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
  if [ \${#COMPREPLY[@]} -eq 0 ] && [ -z "$words" ]; then
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _hostmesh hostmesh
`
}

function zshScript(places: readonly Place[]): string {
  const taken = valueFlags(places)
  const cases = places.map(({ words, commands, options, values }) => {
    const named = commands.map((command) => zshItem(command.name(), command.description()))
    const names = [...named, ...values.map((value) => zshItem(value, ''))]
    const flags = options.flatMap((option) =>
      flagsOf(option).map((flag) => zshItem(flag, option.description)),
    )
    return `    ('${words}') names=(${names.join(' ')}); flags=(${flags.join(' ')}) ;;`
  })
  return `#compdef hostmesh
${HEAD}
_hostmesh() {
  local place= values= previous=\${words[CURRENT-1]}
  local -a names flags
  integer index
  for ((index = 2; index < CURRENT; index++)); do
    case \${words[index]} in
    (${taken.all}) index+=1; continue ;;
    esac
    case "$place|\${words[index]}" in
    (${stepsOf(places).join('|')}) place="\${place:+$place }\${words[index]}" ;;
    esac
  done
  case "$place|$previous" in
${taken.choices}
  esac
  if [[ -n $values ]]; then
    compadd -- \${=values}
    return
  fi
  case $previous in
  (${taken.paths}) _files; return ;;
  (${taken.all}) return ;;
  esac
  case "$place" in
${cases.join('\n')}
  esac
  if [[ \${words[CURRENT]} == -* ]]; then
    _describe option flags
  elif (( \${#names} )); then
    _describe command names
  else
    _files
  fi
}
compdef _hostmesh hostmesh
`
}

function zshItem(name: string, description: string): string {
  return `'${name.replaceAll(':', String.raw`\:`)}:${description.replaceAll("'", String.raw`'\''`)}'`
}

function fishScript(places: readonly Place[]): string {
  const lines = places.flatMap(({ words, commands, options, values }) => {
    const add = (rest: string): string =>
      `complete -c hostmesh -n 'test "$(__hostmesh_place)" = "${words}"' ${rest}`
    return [
      ...commands.map((command) =>
        add(`-f -a ${command.name()} -d ${fishText(command.description())}`),
      ),
      ...values.map((value) => add(`-f -a ${value}`)),
      ...options.map((option) => {
        const { short, long, argChoices } = option
        const flags = [
          ...(short === undefined ? [] : [`-s ${short.slice(1)}`]),
          ...(long === undefined ? [] : [`-l ${long.slice(2)}`]),
        ]
        const chosen = argChoices === undefined ? '' : ` -a ${fishText(argChoices.join(' '))}`
        const kind = takesValue(option) ? (isPath(option) ? ' -r' : ' -x') : ''
        return add(`${flags.join(' ')}${kind}${chosen} -d ${fishText(option.description)}`)
      }),
    ]
  })
  return `${HEAD}
function __hostmesh_place
  set -l place ''
  for word in (commandline -opc)[2..-1]
    switch "$place|$word"
      case ${stepsOf(places).join(' ')}
        set place (string trim "$place $word")
    end
  end
  echo -n $place
end
${lines.join('\n')}
`
}

/** Each step from one place to one below it, such as `'ca|rotate'`. */
function stepsOf(places: readonly Place[]): string[] {
  return places.flatMap(({ words, commands }) =>
    commands.map((command) => `'${words}|${command.name()}'`),
  )
}

function fishText(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", String.raw`\'`)}'`
}
