/**
 * What version runs where, and which pairs of services meet across versions.
 */
import type { ComponentChild } from 'preact'

import type { VersionsDocument } from '../../model/fleet.ts'
import { formatCount, formatShare, plural } from '../format.ts'
import { type Column, Table } from '../parts/table.tsx'
import { Empty, HostLink, Names, Notes, ServiceLink, Waiting } from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { useQuery } from './query.ts'

type MixedPair = VersionsDocument['mixedPairs'][number]

const columns: readonly Column<MixedPair>[] = [
  {
    key: 'source',
    title: 'Caller',
    sortBy: ({ source }) => source,
    cell: ({ source }) => <ServiceLink name={source} />,
  },
  {
    key: 'destination',
    title: 'Destination',
    sortBy: ({ destination }) => destination,
    cell: ({ destination }) => <ServiceLink name={destination} />,
  },
  {
    key: 'versions',
    title: 'Versions',
    width: 30,
    sortBy: ({ versions }) => versions.join(),
    cell: ({ versions }) => <span class="name">{versions.join(', ')}</span>,
  },
]

/** The page. */
export function VersionsPage(): ComponentChild {
  const loaded = useDocument('versions', useQuery())
  const { document } = loaded
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>Versions</h1>
      </div>
      <Waiting loaded={loaded} what="the versions" />
      {document !== null && <Versions document={document} />}
    </main>
  )
}

function Versions({ document }: { readonly document: VersionsDocument }): ComponentChild {
  const { versions, mixedPairs, coverage } = document
  const total = versions.reduce((sum, { hosts }) => sum + hosts.length, 0)
  if (versions.length === 0)
    return (
      <>
        <Notes coverage={coverage} />
        <Empty
          title="No version is known"
          coverage={coverage}
          otherwise="No host has said its version."
        />
      </>
    )
  return (
    <>
      <Notes coverage={coverage} />
      <ul class="versions">
        {versions.map(({ version, hosts }) => (
          <li key={version}>
            <span class="version name">{version}</span>
            <span class="number">{plural(hosts.length, 'host')}</span>
            <meter min={0} max={total} value={hosts.length} aria-label={`Share of ${version}`} />
            <span class="number faint">{formatShare(hosts.length / total)}</span>
            <span class="of-version">
              <Names names={hosts} most={5} link={(name) => <HostLink name={name} />} />
            </span>
          </li>
        ))}
      </ul>
      <h2>
        Pairs across versions <span class="faint">{formatCount(mixedPairs.length)}</span>
      </h2>
      {mixedPairs.length === 0 ? (
        <p class="faint">
          {versions.length === 1
            ? 'All hosts run the same version.'
            : 'No two services that talk to each other are on hosts of different versions.'}
        </p>
      ) : (
        <Table
          caption="Pairs across versions"
          isCaptionHidden
          columns={columns}
          rows={mixedPairs}
          keyOf={({ source, destination }) => `${source} ${destination}`}
          sort="source"
          param="sort"
        />
      )}
    </>
  )
}
