/**
 * Prints, as one deb822 stanza, a machine's own Debian source with its suite replaced by bullseye, where Consul 1.8.7 is:
 * `node scripts/setup/apt-source.ts CODENAME FILE...`; without arguments it is this machine's.
 *
 * Every option that makes the entry trusted or reachable (keyring, Trusted, Architectures) is kept. Fails where no entry is
 * Debian's own for the release.
 */
import { existsSync, globSync, readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'

/** Fields of one entry, by their deb822 names in small letters. */
type Entry = ReadonlyMap<string, string>

/** Written by install-consul.sh. */
const OURS = '/etc/apt/sources.list.d/hostmesh-bullseye.sources'

const [codename = machineCodename(), ...given] = process.argv.slice(2)
const files = process.argv.length > 2 ? given : machineFiles()
const best = files
  .flatMap(entriesOf)
  .map((entry) => ({ entry, score: scoreOf(entry) }))
  .filter(({ score }) => score >= 2)
  .reduce((a, b) => (a === undefined || b.score > a.score ? b : a), undefined as Scored | undefined)
if (best === undefined) {
  if (process.argv.length === 2)
    console.error(`no Debian source for '${codename}' with component main in /etc/apt`)
  process.exitCode = 1
} else console.log(stanzaOf(best.entry))

interface Scored {
  readonly entry: Entry
  readonly score: number
}

function machineCodename(): string {
  return parseEnv(readFileSync('/etc/os-release', 'utf8'))['VERSION_CODENAME'] ?? ''
}

function machineFiles(): string[] {
  const folder = '/etc/apt/sources.list.d'
  return [
    '/etc/apt/sources.list',
    ...globSync([`${folder}/*.list`, `${folder}/*.sources`]).toSorted(),
  ].filter((path) => path !== OURS && existsSync(path))
}

function entriesOf(path: string): Entry[] {
  const lines = readFileSync(path, 'utf8')
    .split(/\r?\n/)
    .filter((line) => !/^\s*#/.test(line))
  if (!path.endsWith('.sources')) return lines.flatMap(lineEntry)
  return lines
    .join('\n')
    .split(/\n\s*\n/)
    .map((stanza) => {
      // A line that begins with a blank goes on with the field before.
      const fields = stanza.matchAll(/^(\S+?):[ \t]*(.*(?:\n[ \t].*)*)/gm)
      return new Map(
        Array.from(fields, ([, name = '', value = '']) => [name.toLowerCase(), value.trimEnd()]),
      )
    })
}

/** `deb [option=value...] URI SUITE COMPONENT...` */
function lineEntry(line: string): Entry[] {
  const match = /^\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)([^#]*)/.exec(line)
  if (match === null) return []
  const [, options = '', uris = '', suites = '', components = ''] = match
  const fields = words(options).map((option): [string, string] => {
    const [name = '', value = ''] = option.split('=', 2)
    return [name === 'arch' ? 'architectures' : name, value.replaceAll(',', ' ')]
  })
  return [
    new Map([
      ['types', 'deb'],
      ...fields,
      ['uris', uris],
      ['suites', suites],
      ['components', components],
    ]),
  ]
}

/** How surely an entry is Debian's own: third parties publish "bookworm main" too. Below 2 it is not. */
function scoreOf(entry: Entry): number {
  const has = (field: string, word: string): boolean => words(entry.get(field)).includes(word)
  const uris = urisOf(entry)
  const isOff = uris === '' || entry.get('enabled')?.toLowerCase() === 'no'
  if (isOff || !has('types', 'deb') || !has('components', 'main')) return 0
  const isNamed = has('suites', codename)
  if (!isNamed && !has('suites', 'stable') && !has('suites', 'oldstable')) return 0
  const signed = entry.get('signed-by') ?? ''
  const byKey = signed.includes('debian-archive') ? 6 : signed === '' ? 2 : 0
  const byPath = /\/debian(?:\.list)?\/?(?: |$)/.test(uris) ? 4 : 0
  return byKey + byPath + (isNamed ? 1 : 0)
}

function urisOf(entry: Entry): string {
  return words(entry.get('uris'))
    .filter((uri) => !uri.startsWith('cdrom:'))
    .join(' ')
}

function stanzaOf(entry: Entry): string {
  const kept = [
    ['Architectures', entry.get('architectures')],
    ['Trusted', entry.get('trusted')],
    ['Signed-By', entry.get('signed-by')],
  ].flatMap(([name, value = '']) =>
    // An embedded key begins on a line of its own.
    value === '' ? [] : [`${name}:${value.startsWith('\n') ? '' : ' '}${value}`],
  )
  return [
    'Types: deb',
    `URIs: ${urisOf(entry)}`,
    'Suites: bullseye',
    'Components: main',
    ...kept,
  ].join('\n')
}

function words(text = ''): string[] {
  return text.split(/\s+/).filter((word) => word !== '')
}
