/**
 * `hostmesh intentions`: the rules that this host enforces for its services, and those that it cannot enforce.
 */
import type { Command } from 'commander'
import type { DestinationPolicy, IntentionEntry, IntentionsDocument } from '../model/admin.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import { unknownName } from './known-names.ts'
import { readingCommand, show } from './reading-command.ts'
import { type Cell, type Column, renderList, type TableStyle } from './render/table.ts'

/** The `intentions` command. */
export function intentionsCommand(): Command {
  return readingCommand(
    'intentions',
    'List the intentions that this host enforces for its services, in order of precedence',
  )
    .argument('[service]', 'show only the intentions for this service of this host')
    .action(async (service: string | undefined, _options: unknown, command: Command) => {
      const options = command.optsWithGlobals<AdminOptions>()
      await show(options, async () => {
        const all = await fetchList<IntentionsDocument>(
          options.addr,
          '/v1/intentions',
          'destinations',
        )
        const document = service === undefined ? all : only(all, service)
        return {
          document,
          text: (style) => renderIntentions(document, style),
          notes: document.destinations.flatMap(notes),
        }
      })
    })
}

function only({ destinations }: IntentionsDocument, service: string): IntentionsDocument {
  const chosen = destinations.filter(({ destination }) => destination === service)
  if (chosen.length > 0) return { destinations: chosen }
  throw unknownName('service', service, {
    known: destinations.map(({ destination }) => destination),
    message: `Cannot show the intentions for ${service}: it is not called on this host`,
    hint: 'The host of a destination enforces its intentions; hostmesh services lists the services of this host',
  })
}

/** One rule, or what applies without one. */
interface Row {
  readonly destination: string
  readonly source: string
  readonly precedence: string
  readonly action: string
  readonly effect: Cell
  readonly because: string
}

const columns: readonly Column<Row>[] = [
  { heading: 'DESTINATION', cell: ({ destination }) => destination },
  { heading: 'SOURCE', cell: ({ source }) => source },
  { heading: 'PRECEDENCE', cell: ({ precedence }) => precedence },
  { heading: 'ACTION', cell: ({ action }) => action },
  { heading: 'EFFECT', cell: ({ effect }) => effect },
  { heading: 'BECAUSE', cell: ({ because }) => because },
]

function renderIntentions({ destinations }: IntentionsDocument, style: TableStyle): string {
  if (destinations.length === 0) return 'No service of this host can be called'
  return renderList(columns, destinations.flatMap(rowsOf), style)
}

function rowsOf({ destination, defaultPolicy, intentions }: DestinationPolicy): Row[] {
  const last: Row = {
    destination,
    source: 'any other',
    precedence: '-',
    action: '-',
    effect: effectCell(defaultPolicy ?? 'deny'),
    because: defaultPolicy === null ? 'no intentions are loaded yet' : 'default policy',
  }
  return [...intentions.map((rule) => rowOf(destination, rule)), last]
}

function rowOf(destination: string, rule: IntentionEntry): Row {
  const wildcard = rule.destination === '*' ? 'intention for all destinations' : ''
  return {
    destination,
    source: rule.source,
    precedence: String(rule.precedence),
    action: rule.action ?? `${rule.permissions?.length ?? 0} permissions`,
    effect: effectCell(rule.effect),
    because: rule.notEnforced ?? wildcard,
  }
}

function effectCell(effect: 'allow' | 'deny'): Cell {
  return { text: effect, tone: effect === 'allow' ? 'good' : 'bad' }
}

function notes({ destination, intentions }: DestinationPolicy): string[] {
  const count = intentions.filter(({ notEnforced }) => notEnforced !== null).length
  if (count === 0) return []
  const rules = count === 1 ? '1 intention' : `${count} intentions`
  return [`${rules} for ${destination} cannot be enforced as written, and so denies`]
}
