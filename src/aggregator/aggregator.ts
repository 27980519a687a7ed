/**
 * The aggregator put together: reports come in, the store keeps them, the API answers. Starts its parts in order and
 * stops them again.
 */
import { once } from 'node:events'
import type { Server } from 'node:http'
import { join } from 'node:path'
import type { Clock } from '../lib/clock.ts'
import { MeshError } from '../lib/errors.ts'
import { groupId } from '../lib/group-id.ts'
import { closeServer, portOf } from '../lib/json-http.ts'
import type { Log } from '../lib/log.ts'
import { giveToGroup, listenOnUnixSocket, type UnixSocketSpec } from '../lib/unix-socket.ts'
import { isUndialable, type SocketAddress } from '../model/address.ts'
import type { HostReport } from '../model/report.ts'
import { Access } from './access.ts'
import { Answers } from './answers.ts'
import { AuditLog } from './audit.ts'
import type { AggregatorConfig } from './config.ts'
import { FleetReader } from './fleet-reader.ts'
import type { FleetStore } from './fleet-store.ts'
import { HostNames } from './host-names.ts'
import { createIngestServer } from './ingest.ts'
import { LiveHub } from './live.ts'
import { AggregatorCounters, renderMetrics } from './metrics.ts'
import { type ApiServerOptions, createApiServer } from './server.ts'
import { readStaticFiles } from './static-files.ts'
import { TlsFiles } from './tls-files.ts'

/** What an aggregator is made of beside its configuration. */
export interface AggregatorParts {
  /** Stays open when the aggregator stops: it belongs to the caller. */
  readonly store: FleetStore
  /** The report, if the value is one. @throws MeshError that says what is wrong with it */
  readonly checkReport: (value: unknown) => HostReport
  /** Where the files of the dashboard are. */
  readonly dashboard: string
  readonly log: Log
  readonly clock: Clock
}

/** A running aggregator. */
export interface Aggregator extends AsyncDisposable {
  /** Of the API. */
  readonly address: SocketAddress
  readonly reportAddress: SocketAddress
}

/**
 * Starts an aggregator. Port 0 takes any free port.
 * @throws MeshError HM_API_LISTEN_FAILED, and as listenOnUnixSocket, groupId, AuditLog, TokenList, TlsFiles
 */
export async function startAggregator(
  config: AggregatorConfig,
  parts: AggregatorParts,
): Promise<Aggregator> {
  const { store, log, clock } = parts
  const { listen, reports, access, tls } = config
  await using owned = new AsyncDisposableStack()
  const gid = listen.group === undefined ? undefined : await groupId(listen.group)
  const audit = owned.use(
    new AuditLog(join(config.store.directory, 'audit.log'), { clock, log: log.child('audit') }),
  )
  const files =
    tls === undefined
      ? undefined
      : owned.use(new TlsFiles(tls, access.clientCertificates?.roots, log.child('tls')))
  const reader = new FleetReader({ store, clock })
  const counters = new AggregatorCounters()
  const live = owned.use(new LiveHub({ read: () => reader.live(), log: log.child('live') }))
  const options: ApiServerOptions = {
    reader,
    access: new Access({ config, gid, audit, clock, log: log.child('access') }),
    answers: new Answers(clock),
    live,
    files: readStaticFiles(parts.dashboard),
    hostNames: new HostNames([
      ...listen.names,
      ...(isUndialable(listen.address) ? [] : [listen.address]),
    ]),
    counters,
    metrics: () => renderMetrics({ reader, counters, listeners: () => live.listeners }),
    log: log.child('api'),
  }
  const socket = { path: listen.socket, mode: 0o660, name: 'API socket', key: 'listen.socket' }
  await serveSocket(owned, createApiServer(options, 'local'), socket)
  if (gid !== undefined) await giveToGroup(socket, { gid, group: listen.group ?? '' })
  if (access.proxy?.socket !== undefined)
    await serveSocket(owned, createApiServer(options, 'proxy'), {
      path: access.proxy.socket,
      mode: 0o660,
      name: 'socket of the proxy',
      key: 'access.proxy.socket',
    })
  const address = await servePort(owned, createApiServer(options, 'tcp', files), {
    address: { ip: listen.address, port: listen.port },
    key: 'listen',
  })
  const ingest = createIngestServer({
    store,
    checkReport: parts.checkReport,
    counters,
    clock,
    log: log.child('reports'),
  })
  const reportAddress = await servePort(owned, ingest, {
    address: { ip: reports.address, port: reports.port },
    key: 'reports',
  })
  const running = owned.move()
  return {
    address,
    reportAddress,
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  }
}

async function serveSocket(
  owned: AsyncDisposableStack,
  server: Server,
  spec: UnixSocketSpec,
): Promise<void> {
  await listenOnUnixSocket(server, spec)
  owned.defer(() => closeServer(server))
}

async function servePort(
  owned: AsyncDisposableStack,
  server: Server,
  { address, key }: { readonly address: SocketAddress; readonly key: string },
): Promise<SocketAddress> {
  const listening = once(server, 'listening')
  server.listen({ host: address.ip, port: address.port })
  try {
    await listening
  } catch (cause) {
    throw new MeshError(
      'HM_API_LISTEN_FAILED',
      `Cannot listen at ${address.ip} port ${address.port}`,
      { cause, hint: `Set ${key}.port to a free port, or stop what listens there` },
    )
  }
  owned.defer(() => closeServer(server))
  return { ip: address.ip, port: portOf(server) }
}
