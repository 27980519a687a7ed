/**
 * The box in which the reader looks for a name: `/` leads to it, Enter goes from one to the next.
 */
import type { ComponentChild } from 'preact'
import { useEffect, useRef } from 'preact/hooks'

import { change, view } from '../location.ts'

/** The box; its text is the parameter `find`. */
export function FindBox(props: {
  /** How many the text means; null while there is no text. */
  readonly found: number | null
  readonly next?: () => void
}): ComponentChild {
  const box = useRef<HTMLInputElement>(null)
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const isTyping = event.target instanceof HTMLElement && event.target.matches('input, select')
      if (event.key !== '/' || isTyping || event.ctrlKey || event.metaKey) return
      event.preventDefault()
      box.current?.focus()
      box.current?.select()
    }
    addEventListener('keydown', onKey)
    return () => removeEventListener('keydown', onKey)
  }, [])
  return (
    <label class="field find">
      <span>Find</span>
      <input
        ref={box}
        type="search"
        size={14}
        placeholder="/"
        value={view.value.params['find'] ?? ''}
        onInput={(event) => change({ find: event.currentTarget.value })}
        onKeyDown={(event) => {
          if (event.key === 'Enter') props.next?.()
          if (event.key === 'Escape') {
            change({ find: undefined })
            event.currentTarget.blur()
          }
        }}
      />
      <output class="found" aria-live="polite">
        {props.found === null ? '' : `${props.found} found`}
      </output>
    </label>
  )
}
