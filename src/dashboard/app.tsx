/**
 * The frame of all pages: navigation, the fleet in one line, whether data comes, theme; and the page in it.
 */
import type { ComponentChild } from 'preact'
import { useErrorBoundary } from 'preact/hooks'

import { formatClock, formatCount, formatRate, formatShare } from './format.ts'
import { liveEvent, liveStatus } from './live.ts'
import { hrefOf, view } from './location.ts'
import { GraphPage } from './pages/graph-page.tsx'
import { HostPage } from './pages/host-page.tsx'
import { HostsPage } from './pages/hosts-page.tsx'
import { RisksPage } from './pages/risks-page.tsx'
import { ServicePage } from './pages/service-page.tsx'
import { ServicesPage } from './pages/services-page.tsx'
import { VersionsPage } from './pages/versions-page.tsx'
import { Badge } from './parts/words.tsx'
import { nextTheme, theme } from './theme.ts'
import { Timeline } from './timeline.tsx'
import { type Page, pages } from './view.ts'

const titles: Readonly<Record<Page, string>> = {
  graph: 'Graph',
  services: 'Services',
  hosts: 'Hosts',
  risks: 'Risks',
  versions: 'Versions',
}

/** The whole of what is shown. */
export function App(): ComponentChild {
  const { page, name } = view.value
  return (
    <>
      <a class="skip" href="#content" onClick={skip}>
        Skip to the page
      </a>
      <header class="top">
        <span class="brand">
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <path d="M4 4L16 10L4 16M4 4V16" />
            <circle cx="4" cy="4" r="2.6" />
            <circle cx="16" cy="10" r="2.6" />
            <circle cx="4" cy="16" r="2.6" />
          </svg>
          hostmesh
        </span>
        <nav aria-label="Pages">
          {pages.map((target) => (
            <a
              key={target}
              href={hrefOf(target)}
              aria-current={target === page ? 'page' : undefined}
            >
              {titles[target]}
            </a>
          ))}
        </nav>
        <Fleet />
        <button
          type="button"
          class="button theme"
          title="Light, dark, or as the system says"
          aria-label={`Theme: ${theme.value}`}
          onClick={nextTheme}
        >
          {{ system: '◐', light: '○', dark: '●' }[theme.value]}
        </button>
      </header>
      <Timeline />
      <Lost />
      <div id="content" class="content" tabIndex={-1}>
        <Guarded key={page}>{pageFor(page, name)}</Guarded>
      </div>
    </>
  )
}

/** A page that fails leaves the frame and the other pages. */
function Guarded({ children }: { readonly children: ComponentChild }): ComponentChild {
  const [error, reset] = useErrorBoundary()
  if (error === undefined) return children
  return (
    <main class="page">
      <div class="empty failure" role="alert">
        <p class="empty-title">This page failed</p>
        <p>{error instanceof Error ? error.message : 'for an unknown reason'}</p>
        <p>
          <button type="button" class="button" onClick={reset}>
            Show it again
          </button>
        </p>
      </div>
    </main>
  )
}

function pageFor(page: Page, name: string): ComponentChild {
  switch (page) {
    case 'graph':
      return <GraphPage />
    case 'services':
      return name === '' ? <ServicesPage /> : <ServicePage key={name} name={name} />
    case 'hosts':
      return name === '' ? <HostsPage /> : <HostPage key={name} name={name} />
    case 'risks':
      return <RisksPage />
    case 'versions':
      return <VersionsPage />
  }
}

function skip(event: MouseEvent): void {
  event.preventDefault()
  document.querySelector<HTMLElement>('#content')?.focus()
}

/** Hosts, traffic and failures of the last seconds, and whether they still come. */
function Fleet(): ComponentChild {
  const event = liveEvent.value
  const { state, lastAtMs } = liveStatus.value
  const sign =
    state === 'live' ? (
      <Badge tone="good">live</Badge>
    ) : state === 'waiting' ? (
      <Badge tone="quiet">connecting</Badge>
    ) : (
      <Badge tone="bad">
        {lastAtMs === null ? 'no connection' : `no data since ${formatClock(lastAtMs)}`}
      </Badge>
    )
  return (
    <span class={`fleet${state === 'lost' ? ' lost' : ''}`}>
      {event !== null && <Figures event={event} />}
      {sign}
    </span>
  )
}

function Figures({
  event,
}: {
  readonly event: NonNullable<typeof liveEvent.value>
}): ComponentChild {
  const { hosts, graph } = event
  let opened = 0
  let ended = 0
  let failed = 0
  for (const { traffic } of graph.edges) {
    opened += traffic.openedPerSecond
    const count = Object.values(traffic.closed).reduce((sum, value) => sum + value, 0)
    if (traffic.errorShare === null) continue
    ended += count
    failed += count * traffic.errorShare
  }
  const share = ended === 0 ? null : failed / ended
  return (
    <>
      <a href={hrefOf('hosts')} title="Hosts that are ready, of all">
        <b>
          {formatCount(hosts.ready)}/{formatCount(hosts.total)}
        </b>{' '}
        hosts ready
      </a>
      <span>
        <b>{formatRate(opened)}</b> opened
      </span>
      <span class={share !== null && share >= 0.005 ? 'share bad' : ''}>
        <b>{formatShare(share)}</b> failed
      </span>
    </>
  )
}

/** The sign that what is shown is old. */
function Lost(): ComponentChild {
  const { state, lastAtMs, error } = liveStatus.value
  const isPast = view.value.params['at'] !== undefined
  if (state !== 'lost' || isPast) return null
  return (
    <div class="lost-bar" role="status">
      <Badge tone="bad">
        {lastAtMs === null ? 'No live data' : `No data since ${formatClock(lastAtMs)}`}
      </Badge>
      <span>
        {error === null
          ? 'The connection to the aggregator is lost; it is tried again.'
          : `${error.message}. ${error.hint}.`}
      </span>
    </div>
  )
}
