/**
 * `hostmesh ca serve`: the CA as a service, until a signal ends it. Starts its parts in order and stops them again;
 * docs/ca-protocol.md describes its protocol.
 */
import { systemClock } from '../lib/clock.ts'
import { MeshError } from '../lib/errors.ts'
import { createLog, type LogOptions } from '../lib/log.ts'
import { connectSystemd, takeSystemdEnvironment } from '../lib/systemd.ts'
import { nameThread } from '../lib/thread-name.ts'
import { canonicalIp, formatAddress, isUndialable, type SocketAddress } from '../model/address.ts'
import { CA_ADDRESS } from '../model/join-token.ts'
import { type CaLifetimes, CertificateAuthority } from './certificate-authority.ts'
import { serveControlSocket } from './control.ts'
import { type CaCatalog, openHostServices } from './host-services.ts'
import { startCaServer } from './server.ts'

/** The options of `hostmesh ca serve`. */
export interface CaServiceOptions {
  readonly directory: string
  /** `ip:port`. */
  readonly listen: string
  /** `host:port` where hosts reach it; included in tokens. Default: that of `listen`, if that is one address. */
  readonly advertise?: string | undefined
  readonly catalog?: CaCatalog | undefined
  readonly lifetimes: Partial<CaLifetimes>
  readonly log: LogOptions
}

/**
 * Serves until SIGTERM or SIGINT.
 * @throws MeshError HM_CA_ADDRESS_INVALID, HM_CA_LISTEN_FAILED and as CertificateAuthority, openHostServices
 */
export async function runCaService(options: CaServiceOptions): Promise<void> {
  nameThread('hostmesh-ca')
  const { directory, advertise } = options
  const environment = takeSystemdEnvironment()
  const log = createLog(options.log)
  const listen = parseListen(options.listen)
  if (advertise !== undefined && !CA_ADDRESS.test(advertise))
    throw invalidAddress(advertise, '--advertise takes host:port')
  const stopAsked = new Promise<string>((resolve) => {
    process.once('SIGTERM', resolve)
    process.once('SIGINT', resolve)
  })
  await using parts = new AsyncDisposableStack()
  using systemd = connectSystemd({ log, environment })
  const services =
    options.catalog === undefined
      ? undefined
      : parts.use(openHostServices(options.catalog, log.child('catalog')))
  const authority = parts.use(
    new CertificateAuthority({
      directory,
      log: log.child('ca'),
      clock: systemClock,
      lifetimes: options.lifetimes,
      ...(services !== undefined && { runsService: services.runsService }),
    }),
  )
  const server = parts.use(await startCaServer({ authority, listen, log: log.child('ca') }))
  parts.use(await serveControlSocket(authority, directory))
  if (advertise !== undefined) authority.setAddress(advertise)
  else if (!isUndialable(listen.ip)) authority.setAddress(formatAddress(server.address))
  log.info('Serving the certificate authority', {
    address: formatAddress(server.address),
    advertised: authority.address,
    trustDomain: authority.trustDomain,
  })
  systemd.ready()
  systemd.status(`serving ${authority.trustDomain}`)
  const signal = await stopAsked
  log.info('Stopping', { signal })
  systemd.stopping()
}

function parseListen(text: string): SocketAddress {
  const match = CA_ADDRESS.exec(text)
  const ip = canonicalIp(match?.[1] ?? match?.[2] ?? '')
  const port = Number(match?.[3])
  if (ip === undefined || port > 65_535) throw invalidAddress(text, '--listen takes ip:port')
  return { ip, port }
}

function invalidAddress(text: string, hint: string): MeshError {
  return new MeshError('HM_CA_ADDRESS_INVALID', `Cannot use "${text}" as address of the CA`, {
    hint: `${hint}, an IPv6 address in brackets`,
  })
}
