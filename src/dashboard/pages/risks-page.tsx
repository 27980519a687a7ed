/**
 * What will break, before it does.
 */
import type { ComponentChild } from 'preact'

import type { Risk, RiskKind } from '../../model/fleet.ts'
import { plural } from '../format.ts'
import { view } from '../location.ts'
import { FindBox } from '../parts/find-box.tsx'
import { type Column, Table } from '../parts/table.tsx'
import { Badge, Empty, Notes, type Tone, Waiting } from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { isWanted, useQuery } from './query.ts'

const kinds: Readonly<Record<RiskKind, string>> = {
  singleInstance: 'single instance',
  oneHost: 'all on one host',
  oneZone: 'all in one zone',
  certificateLife: 'certificate ends soon',
  unusedAllow: 'allow that nobody used',
  defaultDenyWouldCut: 'a default deny would cut it',
  oldVersion: 'old version',
  clockOff: 'clock off',
  plaintext: 'plaintext accepted',
  silentHost: 'silent host',
  captureOff: 'capture off',
}

const severities = {
  high: { order: 0, tone: 'bad' },
  medium: { order: 1, tone: 'warn' },
  low: { order: 2, tone: 'quiet' },
} as const

/** A newer aggregator may know more kinds and severities. */
function kindOf(kind: RiskKind): string {
  return Object.hasOwn(kinds, kind) ? kinds[kind] : kind
}

function severityOf(severity: Risk['severity']): { readonly order: number; readonly tone: Tone } {
  return Object.hasOwn(severities, severity) ? severities[severity] : { order: 3, tone: 'quiet' }
}

const columns: readonly Column<Risk>[] = [
  {
    key: 'severity',
    title: 'Severity',
    width: 13,
    sortBy: ({ severity }) => severityOf(severity).order,
    cell: ({ severity }) => <Badge tone={severityOf(severity).tone}>{severity}</Badge>,
  },
  {
    key: 'subject',
    title: 'Subject',
    width: 26,
    sortBy: ({ subject }) => subject,
    cell: ({ subject }) => <span class="name">{subject}</span>,
  },
  {
    key: 'kind',
    title: 'Kind',
    width: 26,
    sortBy: ({ kind }) => kindOf(kind),
    cell: ({ kind }) => kindOf(kind),
  },
  {
    key: 'message',
    title: 'What',
    sortBy: ({ message }) => message,
    cell: ({ message, hint }) => (
      <span class="prose">
        {message} <span class="faint">{hint}</span>
      </span>
    ),
  },
]

/** The page. */
export function RisksPage(): ComponentChild {
  const loaded = useDocument('risks', useQuery())
  const { document } = loaded
  const hasText = (view.value.params['find'] ?? '') !== ''
  const rows =
    document?.risks.filter(({ subject, message, kind }) =>
      isWanted(subject, message, kindOf(kind)),
    ) ?? []
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>Risks</h1>
        {document !== null && <span class="faint">{plural(document.risks.length, 'risk')}</span>}
        <FindBox found={hasText ? rows.length : null} />
      </div>
      <Waiting loaded={loaded} what="the risks" />
      {document !== null && <Notes coverage={document.coverage} />}
      {document !== null &&
        (rows.length === 0 ? (
          <Empty
            title={hasText ? 'No risk fits' : 'No risk was found'}
            {...(hasText ? {} : { coverage: document.coverage })}
            otherwise={
              hasText
                ? 'Shorten the text in find.'
                : 'All hosts have reported, and nothing that is looked for was found.'
            }
          />
        ) : (
          <Table
            caption="Risks"
            isCaptionHidden
            columns={columns}
            rows={rows}
            keyOf={({ kind, subject, message }) => `${kind} ${subject} ${message}`}
            sort="severity"
            param="sort"
          />
        ))}
    </main>
  )
}
