/**
 * Checks claims of the sources that lint cannot check: `node scripts/check-source.ts [ROOT]`.
 *
 * Every export is imported by another file. A file whose header says "Pure." uses neither the system nor a clock, and
 * neither do its imports. Disk writes, native code, processes and Node's undocumented fields are used in listed files
 * only. No file of the program is too long. Every path in .oxlintrc.json exists.
 */
import { globSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, resolve } from 'node:path'

const root = resolve(process.argv[2] ?? join(import.meta.dirname, '..'))

/** Patterns that only the listed files may contain; `inside` limits a rule to one folder. */
const reserved: readonly {
  readonly what: string
  readonly pattern: RegExp
  readonly files: readonly string[]
  readonly inside?: string
}[] = [
  {
    what: 'a worker asks no disk, no DNS and no other program',
    pattern: /'node:(?:fs|fs\/promises|dns|dns\/promises|http|https|child_process)'/,
    files: [],
    inside: 'src/dataplane/',
  },
  {
    what: 'a file is written by src/lib/atomic-file.ts',
    pattern:
      /\b(?:writeFile|appendFile|copyFile|cp|rename|createWriteStream)(?:Sync)?\(|\.sync\(\)/,
    files: [
      'src/lib/atomic-file.ts',
      // Appends, and renames its own file when it is full.
      'src/aggregator/audit.ts',
      // The same, for several files.
      'src/daemon/access-log-file.ts',
      // Rename a file that they reject.
      'src/lib/state-file.ts',
      'src/aggregator/store/database.ts',
      // An empty file, and a file of /proc.
      'src/lib/systemd.ts',
      'src/lib/thread-name.ts',
    ],
  },
  {
    what: 'native code is called through src/lib/native.ts',
    pattern: /'koffi'|\bprocess\.(?:binding|dlopen)\b/,
    files: ['src/lib/native.ts'],
  },
  {
    what: 'what starts processes is listed here',
    pattern: /'node:child_process'/,
    files: [
      'src/controlplane/capture/command.ts',
      'src/controlplane/capture/table-owner.ts',
      'src/daemon/config-check.ts',
      'src/daemon/hand-over-link.ts',
      'src/daemon/stop-cause.ts',
      'src/daemon/uninstall.ts',
      'src/lib/group-id.ts',
    ],
  },
  {
    what: "Node's undocumented fields are read by src/lib/node-internals.ts",
    pattern: /\b_(?:handle|parent)\b|\bkBuffer\w*/,
    files: ['src/lib/node-internals.ts'],
  },
]

/** Most lines of a file of the program: a longer one has several subjects. */
const MAX_LINES = 500

/** Uses of the system, a clock or random numbers, which a pure file does not contain. */
const impure =
  /\b(?:Date\.now|performance\.now|Math\.random|setTimeout|setInterval|setImmediate|fetch)\(|\bnew Date\(\)|\b(?:process|crypto)\.\w/

/** Functions of Node that only compute. */
const pureNames: ReadonlySet<string> = new Set([
  'createHash',
  'hash',
  'isDeepStrictEqual',
  'isIP',
  'isIPv4',
  'isIPv6',
  'timingSafeEqual',
])

interface Import {
  readonly names: readonly string[]
  /** Everything may be used: a namespace, or an import at run time. */
  readonly isWhole: boolean
  readonly isType: boolean
  readonly from: string
}

interface Source {
  readonly path: string
  readonly lines: number
  /** Without comments. */
  readonly code: string
  readonly header: string
  readonly imports: readonly Import[]
}

const sources = new Map(
  globSync(['src/**/*.{ts,tsx}', 'test/**/*.ts', 'scripts/**/*.ts', 'bench/**/*.ts'], { cwd: root })
    .toSorted()
    .map((path) => [path, parse(path)]),
)
const problems = [
  ...checkExports(),
  ...checkPure(),
  ...checkReserved(),
  ...checkLength(),
  ...checkLint(),
]
for (const problem of problems) console.error(problem)
process.exitCode = problems.length > 0 ? 1 : 0

function parse(path: string): Source {
  const text = readFileSync(join(root, path), 'utf8')
  const header = /^(?:#!.*\n)?\/\*\*[\s\S]*?\*\//.exec(text)?.[0] ?? ''
  const code = text.replaceAll(/^\s*\/\*\*[\s\S]*?\*\/|(?<![:'"`\w])\/\/ .*$/gm, '')
  const imports: Import[] = []
  const add = (type: string, clause: string, from: string): void => {
    const listed = listedIn(clause)
    const isWhole = !clause.startsWith('{')
    imports.push({
      names: listed.map((word) => word.replaceAll(/^type | as .*/g, '')),
      isWhole,
      isType: type !== '' || (!isWhole && listed.every((word) => word.startsWith('type '))),
      from: from.startsWith('.') ? normalize(join(dirname(path), from)) : from,
    })
  }
  for (const [, type = '', clause = '', from = ''] of code.matchAll(
    /^(?:import|export) (type )?([\w\s{},*]*?)(?: from )?'([^']+)'$/gm,
  ))
    add(type, clause, from)
  for (const [, from = ''] of code.matchAll(/\bimport\(\s*'([^']+)'/g)) add('', '*', from)
  return { path, lines: text.split('\n').length - 1, code, header, imports }
}

/** The words between the braces of an import or export, such as `type A` and `a as b`. */
function listedIn(clause: string): string[] {
  return (/\{([^}]*)\}/.exec(clause)?.[1] ?? '')
    .split(',')
    .map((word) => word.trim())
    .filter((word) => word !== '')
}

/** Exports that no other file imports. A type that its own file uses may be one: it describes another export. */
function checkExports(): string[] {
  const used = new Map<string, Set<string>>()
  for (const source of sources.values())
    for (const { names, isWhole, from } of source.imports) {
      const target = sources.get(from)
      if (target === undefined) continue
      const set = used.get(from) ?? new Set()
      used.set(from, set)
      for (const name of names) set.add(name)
      // Of a module that is imported as a whole, the names that the file contains are used.
      if (isWhole)
        for (const { name } of exportsOf(target)) if (mentions(source.code, name) > 0) set.add(name)
    }
  return [...sources.values()].flatMap((source) =>
    exportsOf(source)
      .filter(({ name, kind }) => {
        if (used.get(source.path)?.has(name) === true) return false
        const isType = kind === 'interface' || kind === 'type'
        return !(isType && mentions(source.code, name) > 1)
      })
      .map(({ name }) => `${source.path}: exports ${name}, which no other file imports`),
  )
}

function exportsOf({ code }: Source): { readonly name: string; readonly kind: string }[] {
  const declared =
    /^export (?:declare |abstract |async )*(function\*?|const|let|class|interface|type) (\w+)/gm
  return [
    ...Array.from(code.matchAll(declared), ([, kind = '', name = '']) => ({ name, kind })),
    ...Array.from(code.matchAll(/^export (?:type )?\{[^}]*\}/gm), ([list]) => listedIn(list))
      .flat()
      .map((word) => ({ name: word.replace(/^type |.* as /, ''), kind: 'list' })),
  ]
}

function mentions(code: string, name: string): number {
  return code.match(new RegExp(`(?<![\\w$])${name}(?![\\w$])`, 'g'))?.length ?? 0
}

function checkPure(): string[] {
  return [...sources.values()]
    .filter(({ path, header }) => path.startsWith('src/') && /\bpure\b/i.test(header))
    .flatMap((source) => {
      const chain = findImpure(source, new Set())
      return chain === undefined
        ? []
        : [`${source.path}: says that it is pure, and is not: ${chain}`]
    })
}

/** The reason why a file is impure: its own code, or that of a file it imports (not only types of it). */
function findImpure(source: Source, seen: Set<string>): string | undefined {
  if (seen.has(source.path)) return undefined
  seen.add(source.path)
  const use = impure.exec(source.code)
  if (use !== null) return `${source.path} says ${use[0]}`
  for (const { from, isType, isWhole, names } of source.imports) {
    if (isType) continue
    if (from.startsWith('node:')) {
      if (isWhole || !names.every((name) => pureNames.has(name)))
        return `${source.path} imports ${from}`
      continue
    }
    const target = sources.get(from)
    const chain = target === undefined ? undefined : findImpure(target, seen)
    if (chain !== undefined) return chain
  }
  return undefined
}

function checkReserved(): string[] {
  return [...sources.values()].flatMap(({ path, code }) =>
    reserved
      .filter(({ inside = 'src/', files }) => path.startsWith(inside) && !files.includes(path))
      .filter(({ pattern }) => pattern.test(code))
      .map(({ what, pattern }) => `${path}: ${what}, and here is ${pattern.exec(code)?.[0]}`),
  )
}

/** Files of the program that are too long. */
function checkLength(): string[] {
  return [...sources.values()].flatMap(({ path, lines }) => {
    if (!path.startsWith('src/') || lines <= MAX_LINES) return []
    return [
      `${path}: has ${lines} lines; the limit is ${MAX_LINES}, so give a part of it with a subject of its own a file`,
    ]
  })
}

/** Files and folders in .oxlintrc.json that do not exist. */
function checkLint(): string[] {
  const config: {
    overrides: {
      files: string[]
      rules: { 'no-restricted-imports'?: [string, { patterns: { group: string[] }[] }] }
    }[]
  } = JSON.parse(readFileSync(join(root, '.oxlintrc.json'), 'utf8'))
  return config.overrides.flatMap(({ files, rules }) => {
    const gone = files.filter((glob) => globSync(glob, { cwd: root }).length === 0)
    const groups = (rules['no-restricted-imports']?.[1].patterns ?? []).flatMap(
      ({ group }) => group,
    )
    for (const group of groups) {
      if (!group.startsWith('!')) continue
      const tail = group
        .slice(1)
        .replaceAll('../', '')
        .replace(/\/\*\*$/, '')
      const isThere = tail.includes('*') || globSync(`src/**/${tail}`, { cwd: root }).length > 0
      if (!isThere) gone.push(group)
    }
    return gone.map((name) => `.oxlintrc.json: '${name}' fits nothing that exists`)
  })
}
