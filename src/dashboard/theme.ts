/**
 * Light or dark: as the system says, or as the reader has chosen; and the colours as they are at the moment.
 */
import { type Signal, signal } from '@preact/signals'

/** What the reader may choose. */
export type Theme = 'system' | 'light' | 'dark'

const KEY = 'hostmesh-theme'
const order = ['system', 'light', 'dark'] as const

/** The choice. */
export const theme: Signal<Theme> = signal(
  order.find((known) => known === localStorage.getItem(KEY)) ?? 'system',
)

/** Applies the choice, and every later one. */
export function followTheme(): void {
  theme.subscribe((chosen) => {
    if (chosen === 'system') {
      delete document.documentElement.dataset['theme']
      localStorage.removeItem(KEY)
    } else {
      document.documentElement.dataset['theme'] = chosen
      localStorage.setItem(KEY, chosen)
    }
  })
}

/** The next choice. */
export function nextTheme(): void {
  theme.value = order[(order.indexOf(theme.value) + 1) % order.length] ?? 'system'
}

/** The present value of a colour of the style sheet, such as `--text`. */
export function colourOf(name: string): string {
  const probe = document.createElement('span')
  probe.className = 'probe'
  probe.style.color = `var(${name})`
  document.body.append(probe)
  const { color } = getComputedStyle(probe)
  probe.remove()
  return color
}
