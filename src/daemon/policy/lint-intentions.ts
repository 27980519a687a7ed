/**
 * Rules of `hostmesh policy lint` about intentions. Pure.
 */
import { quoteForMessage } from '../../lib/json-value.ts'
import { precedenceOf } from '../../model/intention.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import { type Entry, type Finding, finding, records, textOf } from './lint-rules.ts'

/** One rule, from whichever form. */
interface Rule {
  readonly entry: Entry
  readonly source: string
  readonly destination: string
  readonly action: unknown
  readonly value: Entry['value']
}

/** Findings in all intentions of all files. */
export function lintIntentions(entries: readonly Entry[]): Finding[] {
  const rules = entries.flatMap(rulesOf)
  return [...rules.flatMap(lintRule), ...duplicates(rules), ...voidAllows(rules)]
}

function rulesOf(entry: Entry): Rule[] {
  const { kind, value } = entry
  if ('SourceName' in value) {
    const [source, destination] = [textOf(value['SourceName']), textOf(value['DestinationName'])]
    const named = { ...entry, name: `${source} -> ${destination}` }
    return [{ entry: named, source, destination, action: value['Action'], value }]
  }
  if (kind !== 'service-intentions') return []
  return records(value['Sources']).map((source) => ({
    entry,
    source: textOf(source['Name']),
    destination: entry.name,
    action: source['Action'],
    // JWT requirements may be those of the whole entry.
    value: { JWT: value['JWT'], ...source },
  }))
}

function lintRule({ entry, source, destination, action, value }: Rule): Finding[] {
  const pair = `${source} -> ${destination}`
  const permissions = value['Permissions']
  const hasPermissions = Array.isArray(permissions) && permissions.length > 0
  const hasAction = action !== undefined && action !== null && action !== ''
  const found: Finding[] = []
  if (hasAction && action !== 'allow' && action !== 'deny')
    found.push(
      finding(
        entry,
        'HM1001',
        `${pair} has the action ${quoteForMessage(action)}: it must be allow or deny`,
      ),
    )
  if (source === '*' && destination === '*' && action === 'allow')
    found.push(finding(entry, 'HM1002', 'Every service may call every other one'))
  for (const name of new Set([source, destination]))
    if (name !== '*' && name.includes('*'))
      found.push(
        finding(
          entry,
          'HM1006',
          `${quoteForMessage(name)} is compared as text: only * is a wildcard`,
        ),
      )
    else if (name !== '*' && !isServiceName(name))
      found.push(finding(entry, 'HM1005', `No service can be called ${quoteForMessage(name)}`))
  if (hasAction === hasPermissions)
    found.push(
      finding(
        entry,
        'HM1007',
        `${pair} has ${hasAction ? 'both an action and permissions' : 'neither an action nor permissions'}`,
      ),
    )
  if (hasPermissions)
    found.push(
      finding(
        entry,
        'HM1008',
        `${pair} decides by HTTP request: as opaque TCP it denies every connection`,
        'warning',
      ),
    )
  const { JWT: jwt } = value
  if (jwt !== undefined && jwt !== null)
    found.push(
      finding(entry, 'HM1009', `${pair} has JWT requirements, and so denies every connection`),
    )
  return found
}

/** Rules about other peers, namespaces and partitions are about other callers. */
function scopeOf({ value }: Rule): string {
  const keys = ['Peer', 'SourcePeer', 'Namespace', 'SourceNS', 'Partition', 'SourcePartition']
  return JSON.stringify([...keys, 'SamenessGroup'].map((key) => value[key] ?? ''))
}

function duplicates(rules: readonly Rule[]): Finding[] {
  const seen = new Map<string, Rule>()
  return rules.flatMap((rule) => {
    const { entry, source, destination } = rule
    const key = JSON.stringify([source, destination.toLowerCase(), scopeOf(rule)])
    const first = seen.get(key)
    if (first === undefined) seen.set(key, rule)
    if (first === undefined) return []
    const where = first.entry.file === entry.file ? 'twice' : `here and in ${first.entry.file}`
    return [finding(entry, 'HM1003', `${source} -> ${destination} has a rule ${where}`)]
  })
}

/** An allow of one source for all destinations is void where a deny of all sources names the destination. */
function voidAllows(rules: readonly Rule[]): Finding[] {
  const denies = rules.filter(({ action }) => action === 'deny')
  return rules.flatMap((rule) => {
    const { entry, source, destination, action } = rule
    if (action !== 'allow' || source === '*') return []
    const stronger = denies.filter(
      (deny) =>
        deny.source === '*' &&
        (destination === '*' || deny.destination === destination) &&
        precedenceOf(deny.source, deny.destination) > precedenceOf(source, destination) &&
        // An exact rule for the pair decides before both.
        !rules.some((exact) => exact.source === source && exact.destination === deny.destination),
    )
    return stronger.map((deny) =>
      finding(
        entry,
        'HM1004',
        `${source} -> ${destination} allows nothing at ${deny.destination}: * -> ${deny.destination} denies, with a higher precedence`,
      ),
    )
  })
}
