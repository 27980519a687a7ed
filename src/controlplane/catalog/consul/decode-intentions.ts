/**
 * Decodes Consul's answers about intentions into the model. Pure.
 *
 * One shape for all versions: Consul 1.8 stores intentions by themselves, newer versions derive them from
 * service-intentions entries, and `/v1/connect/intentions/match` returns both in the same form. Omitting a rule, or a
 * condition of it, could allow what it denies. So a rule that cannot be read rejects the whole answer, and one that
 * cannot be applied as written denies and is reported.
 */
import { MeshError } from '../../../lib/errors.ts'
import { isRecord, member, quoteForMessage } from '../../../lib/json-value.ts'
import { type Intention, precedenceOf } from '../../../model/intention.ts'
import type { IntentionPermission } from '../../../model/permission.ts'
import { decodePermission, isPresent } from '../permission.ts'
import { malformed, shortened } from './decode.ts'

/** Most rules for one destination; an answer with more is rejected. */
const MAX_INTENTIONS = 5_000

/** Most permissions of a rule; one with more denies. */
const MAX_PERMISSIONS = 1_000

/** Rules by destination, and problems found in them. */
export interface DecodedIntentions {
  /** Has every requested destination; highest precedence first. */
  readonly byDestination: ReadonlyMap<string, readonly Intention[]>
  readonly problems: readonly string[]
}

/**
 * Reads `/v1/connect/intentions/match?by=destination&name=…` for `destinations`.
 * @throws MeshError HM_CONSUL_ANSWER_MALFORMED, HM_CONSUL_ANSWER_TOO_LARGE
 */
export function decodeIntentions(
  destinations: readonly string[],
  body: unknown,
): DecodedIntentions {
  if (!isRecord(body)) throw malformed('intentions', 'an object', body)
  const problems: string[] = []
  const byDestination = new Map<string, readonly Intention[]>()
  for (const destination of destinations) {
    if (!Object.hasOwn(body, destination))
      throw new MeshError(
        'HM_CONSUL_ANSWER_MALFORMED',
        `Answer of Consul does not speak of the intentions for ${destination}`,
      )
    const rules = body[destination] ?? []
    if (!Array.isArray(rules)) throw malformed(`intentions for ${destination}`, 'a list', rules)
    if (rules.length > MAX_INTENTIONS)
      throw new MeshError(
        'HM_CONSUL_ANSWER_TOO_LARGE',
        `Consul names ${rules.length} intentions for ${destination}; the limit is ${MAX_INTENTIONS}`,
      )
    byDestination.set(
      destination,
      rules
        .map((rule) => decodeIntention(destination, rule, problems))
        .filter((rule) => rule !== undefined)
        .toSorted(byPrecedence),
    )
  }
  return { byDestination, problems: shortened(problems) }
}

function decodeIntention(
  destination: string,
  rule: unknown,
  problems: string[],
): Intention | undefined {
  const source = text(destination, rule, 'SourceName')
  const target = text(destination, rule, 'DestinationName')
  if (source === '') throw malformed(`intention for ${destination}`, 'a SourceName', source)
  // Consul matches destinations without regard to case, and sources exactly (seen on 1.8.7).
  if (target.toLowerCase() !== destination.toLowerCase() && target !== '*')
    throw malformed(`intention for ${destination}`, `destination ${destination}`, target)
  if (isElsewhere(destination, rule)) return undefined
  const precedence = member(rule, 'Precedence')
  const named = {
    source,
    destination: target === '*' ? '*' : destination,
    precedence:
      typeof precedence === 'number' && Number.isInteger(precedence) && precedence > 0
        ? precedence
        : precedenceOf(source, target),
  }
  const verdict = decodeVerdict(rule)
  const pair = `Intention ${quoteForMessage(source)} -> ${quoteForMessage(target)}`
  if (typeof verdict === 'string') {
    problems.push(`${pair} denies: it ${verdict}, which hostmesh cannot obey`)
    return { ...named, action: undefined, undecidable: verdict }
  }
  if ('action' in verdict) return { ...named, action: verdict.action }
  problems.push(
    `${pair} denies: it decides by HTTP request, and connections are carried as opaque TCP`,
  )
  return { ...named, action: undefined, permissions: verdict.permissions }
}

/**
 * Whether the rule is about callers of another cluster, partition or namespace: it cannot apply to callers of this
 * mesh, whatever their name.
 */
function isElsewhere(destination: string, rule: unknown): boolean {
  const isOther = (key: string, ours: readonly string[]): boolean =>
    !['', ...ours].includes(text(destination, rule, key))
  return (
    isOther('SourcePeer', []) ||
    isOther('SourceNS', ['default', '*']) ||
    isOther('DestinationNS', ['default', '*']) ||
    isOther('SourcePartition', ['default']) ||
    isOther('DestinationPartition', ['default'])
  )
}

/** The decision of the rule; a clause that says why if it cannot be applied. */
function decodeVerdict(
  rule: unknown,
): { action: 'allow' | 'deny' } | { permissions: readonly IntentionPermission[] } | string {
  if (!isRecord(rule)) return `is ${quoteForMessage(rule)}`
  // An unknown field may narrow the rule, or reverse it.
  const unknown = Object.keys(rule).find((key) => !KNOWN_FIELDS.has(key) && isPresent(rule[key]))
  if (unknown !== undefined) return `has the unknown field ${quoteForMessage(unknown)}`
  if (isPresent(rule['JWT'])) return 'has JWT requirements'
  if (isPresent(rule['SourceSamenessGroup'])) return 'names a sameness group as its source'
  const type = rule['SourceType'] ?? ''
  if (type !== '' && type !== 'consul') return `has the source type ${quoteForMessage(type)}`
  const { Action: action, Permissions: permissions } = rule
  if (isPresent(permissions)) {
    if (isPresent(action)) return 'has both an action and permissions'
    return decodePermissions(permissions)
  }
  return action === 'allow' || action === 'deny'
    ? { action }
    : `has the action ${quoteForMessage(action)}`
}

function decodePermissions(
  value: unknown,
): { permissions: readonly IntentionPermission[] } | string {
  if (!Array.isArray(value)) return `has ${quoteForMessage(value)} as its permissions`
  if (value.length > MAX_PERMISSIONS) return `has more than ${MAX_PERMISSIONS} permissions`
  const permissions: IntentionPermission[] = []
  for (const [index, entry] of value.entries()) {
    const permission = decodePermission(entry)
    if (typeof permission === 'string') return `has a permission (${index}) that ${permission}`
    permissions.push(permission)
  }
  return { permissions }
}

/** Fields of an intention from Consul 1.8 to 1.22, including those without influence on who may call whom. */
const KNOWN_FIELDS: ReadonlySet<string> = new Set([
  'ID',
  'Description',
  'SourceNS',
  'SourceName',
  'SourcePartition',
  'SourcePeer',
  'SourceSamenessGroup',
  'SourceType',
  'DestinationNS',
  'DestinationName',
  'DestinationPartition',
  'Action',
  'Permissions',
  'JWT',
  'DefaultAddr',
  'DefaultPort',
  'Meta',
  'Precedence',
  'CreatedAt',
  'UpdatedAt',
  'Hash',
  'CreateIndex',
  'ModifyIndex',
])

/** An optional string. A rule with anything else there cannot be read. */
function text(destination: string, rule: unknown, key: string): string {
  const value = member(rule, key) ?? ''
  if (typeof value !== 'string' || !isRecord(rule))
    throw malformed(`intention for ${destination}`, `a text as its ${key}`, value)
  return value
}

/** Highest precedence first; among equals, those that do not allow. */
function byPrecedence(a: Intention, b: Intention): number {
  if (a.precedence !== b.precedence) return b.precedence - a.precedence
  return Number(a.action === 'allow') - Number(b.action === 'allow')
}
