/**
 * Starts the dashboard in its page.
 */
import { render } from 'preact'

import { App } from './app.tsx'
import { followClock } from './clock.ts'
import { followLive } from './live.ts'
import { followLocation } from './location.ts'
import { followTheme } from './theme.ts'

followTheme()
followLocation()
followClock()
void followLive()
const root = document.querySelector('#app')
if (root !== null) render(<App />, root)
