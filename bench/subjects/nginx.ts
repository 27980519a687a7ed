/**
 * nginx with its stream module, one process of one thread a hop: a TLS connection between the hops for
 * every connection.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { CIPHER_SUITE, SERVER_NAME, writeConfig } from '../site/certificates.ts'
import { ADDRESS_B } from '../site/namespaces.ts'
import { findTool, requireTool } from '../site/tools.ts'
import {
  ENTRY_PORT,
  EXPLICIT_ENTRY,
  LOCAL_BACKEND,
  type Site,
  type Subject,
  startHop,
  TUNNEL_PORT,
} from './subject.ts'
import { nginxVersion } from './versions.ts'

/** Where Debian puts the module; other builds have it compiled in. */
const STREAM_MODULE = '/usr/lib/nginx/modules/ngx_stream_module.so'

/** nginx as an administrator would set it up for mutual TLS between two hosts. */
export const nginx: Subject = {
  name: 'nginx',
  entry: EXPLICIT_ENTRY,
  backendAddress: '127.0.0.1',
  absent: () => (findTool('nginx') === undefined ? 'nginx is not installed' : undefined),
  version: nginxVersion,
  async start(site, hops) {
    const { ca, hopA, hopB } = site.certificates
    const configA = await writeConfig(
      join(site.directory, 'hop-a.conf'),
      streamConfig(
        site,
        'hop-a',
        `listen 127.0.0.1:${ENTRY_PORT} backlog=8192;
    proxy_pass ${ADDRESS_B}:${TUNNEL_PORT};
    proxy_ssl on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites ${CIPHER_SUITE};
    proxy_ssl_certificate ${hopA.certificate};
    proxy_ssl_certificate_key ${hopA.key};
    proxy_ssl_trusted_certificate ${ca};
    proxy_ssl_verify on;
    proxy_ssl_server_name on;
    proxy_ssl_name ${SERVER_NAME};`,
      ),
    )
    const configB = await writeConfig(
      join(site.directory, 'hop-b.conf'),
      streamConfig(
        site,
        'hop-b',
        `listen ${ADDRESS_B}:${TUNNEL_PORT} ssl backlog=8192;
    proxy_pass ${LOCAL_BACKEND};
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites ${CIPHER_SUITE};
    ssl_certificate ${hopB.certificate};
    ssl_certificate_key ${hopB.key};
    ssl_client_certificate ${ca};
    ssl_verify_client on;`,
      ),
    )
    for (const [side, config] of [
      ['a', configA],
      ['b', configB],
    ] as const)
      startHop(site, hops, side, [requireTool('nginx'), '-e', 'stderr', '-c', config])
  },
}

function streamConfig(site: Site, hop: string, server: string): string {
  const module = existsSync(STREAM_MODULE) ? `load_module ${STREAM_MODULE};\n` : ''
  return `${module}daemon off;
master_process off;
worker_processes 1;
error_log stderr error;
pid ${site.directory}/${hop}.pid;
events { worker_connections 16000; }
stream {
  proxy_timeout 1h;
  server {
    ${server}
  }
}
`
}
