/**
 * HAProxy in TCP mode, one thread a hop: a TLS connection between the hops for every connection.
 */
import { join } from 'node:path'
import { CIPHER_SUITE, SERVER_NAME, writeConfig } from '../site/certificates.ts'
import { ADDRESS_B } from '../site/namespaces.ts'
import { run } from '../site/process.ts'
import { findTool, requireTool } from '../site/tools.ts'
import {
  ENTRY_PORT,
  EXPLICIT_ENTRY,
  LOCAL_BACKEND,
  type Subject,
  startHop,
  TUNNEL_PORT,
} from './subject.ts'

const COMMON = `global
  nbthread 1
  maxconn 7500
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites ${CIPHER_SUITE}
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites ${CIPHER_SUITE}
defaults
  mode tcp
  backlog 8192
  timeout connect 5s
  timeout client 1h
  timeout server 1h
`

/** HAProxy as an administrator would set it up for mutual TLS between two hosts. */
export const haproxy: Subject = {
  name: 'haproxy',
  entry: EXPLICIT_ENTRY,
  backendAddress: '127.0.0.1',
  absent: () => (findTool('haproxy') === undefined ? 'haproxy is not installed' : undefined),
  version: async () => (await run([requireTool('haproxy'), '-v'])).split(' - ')[0] ?? 'HAProxy',
  async start(site, hops) {
    const { ca, hopA, hopB } = site.certificates
    const configA = await writeConfig(
      join(site.directory, 'hop-a.cfg'),
      `${COMMON}listen entry
  bind 127.0.0.1:${ENTRY_PORT}
  server b ${ADDRESS_B}:${TUNNEL_PORT} ssl crt ${hopA.bundle} ca-file ${ca} verify required verifyhost ${SERVER_NAME}
`,
    )
    const configB = await writeConfig(
      join(site.directory, 'hop-b.cfg'),
      `${COMMON}listen tunnel
  bind ${ADDRESS_B}:${TUNNEL_PORT} ssl crt ${hopB.bundle} ca-file ${ca} verify required
  server backend ${LOCAL_BACKEND}
`,
    )
    startHop(site, hops, 'a', [requireTool('haproxy'), '-db', '-f', configA])
    startHop(site, hops, 'b', [requireTool('haproxy'), '-db', '-f', configB])
  },
}
