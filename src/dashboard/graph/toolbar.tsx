/**
 * What of the graph is shown and how: grouping, filters, colours, labels, and what the colours mean.
 */
import type { ComponentChild } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'

import type { GraphDocument } from '../../model/fleet.ts'
import { change, view } from '../location.ts'
import { FindBox } from '../parts/find-box.tsx'
import { legends } from './legends.ts'
import { countsOf } from './panel.tsx'
import { colourings, labellings, type SceneOptions } from './scene.ts'

/** What the buttons do. */
export interface GraphActions {
  readonly fit: () => void
  readonly zoom: (factor: number) => void
  readonly arrange: () => void
  readonly save: () => void
  readonly next: () => void
}

/** The bar above the picture. */
export function Toolbar(props: {
  readonly document: GraphDocument
  readonly options: SceneOptions
  /** Nodes that the find text means; null without one. */
  readonly matches: number | null
  readonly hidden: number
  readonly actions: GraphActions
}): ComponentChild {
  const { document, options, matches, hidden, actions } = props
  useKeys(actions)
  const isWide = useWide()
  return (
    <div class="toolbar">
      <FindBox found={matches} next={actions.next} />
      <details class="options" open={isWide}>
        <summary>Grouping, colours, filters</summary>
        <Choice
          label="Group by"
          param="group"
          value={document.group}
          usual="service"
          choices={['service', 'host', 'zone', 'datacenter']}
        />
        <Choice
          label="Colour"
          param="colour"
          value={options.colouring}
          usual="health"
          choices={colourings}
        />
        <Choice
          label="Label"
          param="label"
          value={options.labelling}
          usual="traffic"
          choices={labellings}
        />
        <Choice
          label="Show"
          param="only"
          value={options.only}
          usual="all"
          choices={['all', 'active', 'problems', 'denied']}
        />
        <label class="field">
          <span>Hide</span>
          <input
            type="search"
            size={12}
            placeholder="name, or na*"
            value={options.hide}
            onInput={(event) => change({ hide: event.currentTarget.value })}
          />
        </label>
      </details>
      <Buttons actions={actions} />
      <Legend document={document} options={options} hidden={hidden} />
    </div>
  )
}

function Buttons({ actions }: { readonly actions: GraphActions }): ComponentChild {
  return (
    <span class="buttons" role="group" aria-label="Picture">
      <button
        type="button"
        class="button"
        aria-label="Larger"
        title="Larger (+)"
        onClick={() => actions.zoom(1.3)}
      >
        +
      </button>
      <button
        type="button"
        class="button"
        aria-label="Smaller"
        title="Smaller (-)"
        onClick={() => actions.zoom(1 / 1.3)}
      >
        −
      </button>
      <button type="button" class="button" title="All in view (0)" onClick={actions.fit}>
        Fit
      </button>
      <button type="button" class="button" title="Place all nodes anew" onClick={actions.arrange}>
        Arrange
      </button>
      <button
        type="button"
        class="button"
        title="Save the picture as a file"
        onClick={actions.save}
      >
        SVG
      </button>
    </span>
  )
}

function Legend(props: {
  readonly document: GraphDocument
  readonly options: SceneOptions
  readonly hidden: number
}): ComponentChild {
  const { document, options, hidden } = props
  return (
    <p class="legend">
      <span class="counts">
        {countsOf(document)}
        {hidden > 0 && `, ${hidden} hidden`}
        {document.omitted > 0 &&
          `, ${document.omitted} left out: the fleet is too large for one picture`}
      </span>
      {legends[options.colouring].map(([kind, meaning]) => (
        <span key={kind} class="key">
          <svg viewBox="0 0 22 8" aria-hidden="true">
            <g class={`line ${kind} w2`}>
              <path class="curve" d="M0 4H16" />
              <path class="head" d="M22 4l-7 -3.5v7z" />
            </g>
          </svg>
          {meaning}
        </span>
      ))}
    </p>
  )
}

function Choice<Value extends string>(props: {
  readonly label: string
  readonly param: string
  readonly value: Value
  readonly usual: Value
  readonly choices: readonly Value[]
}): ComponentChild {
  const { label, param, value, usual, choices } = props
  return (
    <label class="field">
      <span>{label}</span>
      <select
        value={value}
        onChange={(event) => {
          const next = event.currentTarget.value
          const gone = param === 'group' ? { sel: undefined, cam: undefined } : {}
          change({ [param]: next === usual ? undefined : next, ...gone }, 'push')
        }}
      >
        {choices.map((choice) => (
          <option key={choice} value={choice}>
            {choice}
          </option>
        ))}
      </select>
    </label>
  )
}

/** Whether there is room for all controls. */
function useWide(): boolean {
  const query = '(min-width: 861px)'
  const [isWide, setWide] = useState(() => matchMedia(query).matches)
  useEffect(() => {
    const media = matchMedia(query)
    const tell = (): void => setWide(media.matches)
    media.addEventListener('change', tell)
    return () => media.removeEventListener('change', tell)
  }, [])
  return isWide
}

function useKeys(actions: GraphActions): void {
  const current = useRef(actions)
  current.current = actions
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const isTyping =
        event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return
      if (event.key === '+' || event.key === '=') current.current.zoom(1.3)
      else if (event.key === '-') current.current.zoom(1 / 1.3)
      else if (event.key === '0') current.current.fit()
      else if (event.key === 'Escape' && view.peek().params['sel'] !== undefined)
        change({ sel: undefined })
    }
    addEventListener('keydown', onKey)
    return () => removeEventListener('keydown', onKey)
  }, [])
}
