/**
 * A port on the loopback of the user, behind which a host of the demo appears: connections go to a unix socket, whose
 * other end the host opens later. It is open as long as this process runs.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { errorCode } from '../../src/lib/errors.ts'
import { forward } from './forward.ts'

/** An open window. */
export interface Window {
  /** The port on 127.0.0.1. */
  readonly port: number
  /** The path at which the host has to listen. */
  readonly socket: string
}

/** Opens one at `port`, or at another port when that is taken. */
export async function openWindow(port: number): Promise<Window> {
  const folder = mkdtempSync(join(tmpdir(), 'hmt-window-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  const socket = join(folder, 'window.sock')
  const server = await forward(port, socket).catch((error: unknown) => {
    if (errorCode(error) !== 'EADDRINUSE') throw error
    return forward(0, socket)
  })
  // Alone it keeps no demo going that is over.
  server.unref()
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('A port has a number')
  return { port: address.port, socket }
}
