/**
 * Small things that say how something is: health, links, notes, errors, why there is nothing.
 */
import type { ComponentChild, ComponentChildren } from 'preact'
import { useState } from 'preact/hooks'

import type { Coverage, GraphNode, HostEntry } from '../../model/fleet.ts'
import { type ApiError, setToken } from '../api.ts'
import { formatClock, plural } from '../format.ts'
import { hrefOf } from '../location.ts'
import type { Loaded } from '../use-document.ts'

/** Kinds of marks: a shape and a colour each. */
export type Tone = 'good' | 'warn' | 'bad' | 'deny' | 'quiet'

const shapes: Readonly<Record<Tone, string>> = {
  good: 'M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z',
  warn: 'M6 1.5L11 10.5H1z',
  bad: 'M6 .5L11.5 6L6 11.5L.5 6z',
  deny: 'M1 4.5h10v3h-10z',
  quiet: 'M2 6a4 4 0 1 0 8 0a4 4 0 1 0 -8 0zM3.7 6a2.3 2.3 0 1 1 4.6 0a2.3 2.3 0 1 1 -4.6 0z',
}

/** A mark and a word, so that neither colour nor shape alone says it. */
export function Badge(props: {
  readonly tone: Tone
  readonly title?: string | undefined
  readonly children: ComponentChildren
}): ComponentChild {
  return (
    <span class={`badge ${props.tone}`} title={props.title}>
      <svg viewBox="0 0 12 12" aria-hidden="true">
        <path fill-rule="evenodd" d={shapes[props.tone]} />
      </svg>
      {props.children}
    </span>
  )
}

const healthTones = { healthy: 'good', degraded: 'warn', failing: 'bad', unknown: 'quiet' } as const

/** The health of a service. */
export function Health(props: {
  readonly health: GraphNode['health']
  readonly reasons?: readonly string[]
}): ComponentChild {
  return (
    <Badge tone={healthTones[props.health]} title={props.reasons?.join('\n')}>
      {props.health}
    </Badge>
  )
}

const stateTones = {
  ready: 'good',
  starting: 'quiet',
  draining: 'quiet',
  degraded: 'warn',
  silent: 'bad',
  conflicting: 'bad',
} as const

/** The state of a host. */
export function HostState({ state }: { readonly state: HostEntry['state'] }): ComponentChild {
  return <Badge tone={stateTones[state]}>{state}</Badge>
}

/** A link to a service. */
export function ServiceLink({ name }: { readonly name: string }): ComponentChild {
  return (
    <a class="name" href={hrefOf('services', name)}>
      {name}
    </a>
  )
}

/** A link to a host. */
export function HostLink({ name }: { readonly name: string }): ComponentChild {
  return (
    <a class="name" href={hrefOf('hosts', name)}>
      {name}
    </a>
  )
}

/** Names that may be many: the first ones, and how many more. */
export function Names(props: {
  readonly names: readonly string[]
  readonly most?: number
  readonly link?: (name: string) => ComponentChild
}): ComponentChild {
  const most = props.most ?? 3
  const [isOpen, setOpen] = useState(false)
  const shown = isOpen ? props.names : props.names.slice(0, most)
  if (props.names.length === 0) return <span class="faint">none</span>
  return (
    <span class="names">
      {shown.map((name, index) => (
        <span key={name}>
          {props.link === undefined ? <span class="name">{name}</span> : props.link(name)}
          {index < shown.length - 1 ? ', ' : ''}
        </span>
      ))}
      {props.names.length > shown.length && (
        <button type="button" class="more" onClick={() => setOpen(true)}>
          +{props.names.length - shown.length}
        </button>
      )}
    </span>
  )
}

/** Why figures are missing, one line unless opened. */
export function Notes({ coverage }: { readonly coverage: Coverage }): ComponentChild {
  const { notes, hosts, reporting } = coverage
  if (notes.length === 0 && reporting >= hosts) return null
  const first = notes[0] ?? `${plural(hosts - reporting, 'host')} of ${hosts} did not report`
  return (
    <details class="notes">
      <summary>
        <Badge tone="warn">
          {reporting}/{hosts} hosts reporting
        </Badge>
        <span class="note">{first}</span>
        {notes.length > 1 && <span class="more">+{notes.length - 1}</span>}
      </summary>
      {notes.length > 1 && (
        <ul>
          {notes.slice(1).map((note) => (
            <li key={note}>{note}</li>
          ))}
        </ul>
      )}
    </details>
  )
}

/** In place of what is not there: says why. */
export function Empty(props: {
  readonly title: string
  readonly coverage?: Coverage
  readonly otherwise: string
}): ComponentChild {
  const { coverage } = props
  const reasons =
    coverage === undefined || coverage.notes.length === 0
      ? [
          coverage !== undefined && coverage.hosts === 0
            ? 'No host has ever reported to this aggregator.'
            : props.otherwise,
        ]
      : coverage.notes
  return (
    <div class="empty">
      <p class="empty-title">{props.title}</p>
      {reasons.map((reason) => (
        <p key={reason}>{reason}</p>
      ))}
    </div>
  )
}

/** What stands where a document is to be: it comes, it could not be had, or it is old. */
export function Waiting<Document>(props: {
  readonly loaded: Loaded<Document>
  readonly what: string
}): ComponentChild {
  const { loaded, what } = props
  if (loaded.error !== null)
    return loaded.document === null ? (
      <Failure error={loaded.error} retry={loaded.retry} />
    ) : (
      <div class="stale" role="status">
        <Badge tone="warn">{loaded.error.message}</Badge>
        <span>
          shown as of {formatClock(loaded.atMs)}. {loaded.error.hint}
        </span>
        <button type="button" class="button" onClick={loaded.retry}>
          Try now
        </button>
      </div>
    )
  return loaded.document === null ? (
    <p class="loading" role="status">
      Loading {what}
    </p>
  ) : null
}

function Failure({ error, retry }: { error: ApiError; retry: () => void }): ComponentChild {
  return (
    <div class="empty failure" role="alert">
      <p class="empty-title">{error.message}</p>
      <p>{error.hint}</p>
      {error.failure === 'unauthorized' ? (
        <TokenForm />
      ) : (
        <p>
          <button type="button" class="button" onClick={retry}>
            Try again
          </button>
          {error.isPassing && <span class="faint"> it is tried again by itself</span>}
        </p>
      )}
    </div>
  )
}

function TokenForm(): ComponentChild {
  const [text, setText] = useState('')
  return (
    <form
      class="token"
      onSubmit={(event) => {
        event.preventDefault()
        setToken(text.trim())
      }}
    >
      <label>
        Token
        <input
          type="password"
          autocomplete="off"
          value={text}
          onInput={(event) => setText(event.currentTarget.value)}
        />
      </label>
      <button type="submit" class="button">
        Enter
      </button>
    </form>
  )
}
