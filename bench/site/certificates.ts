/**
 * Test certificates for the peers: one CA and two leaves, ECDSA P-256, made by openssl. hostmesh makes its
 * own with `hostmesh ca`, which are of the same kind.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './process.ts'
import { requireTool } from './tools.ts'

/** The suite every hop uses. Envoy's TLS library takes no order for TLS 1.3 and picks this by itself. */
export const CIPHER_SUITE = 'TLS_AES_128_GCM_SHA256'

/** What the output says about TLS, equal for all subjects. */
export const TLS_POLICY = `mutual TLS 1.3, ECDSA P-256 certificates, ${CIPHER_SUITE}; session resumption as each peer does by default`

/** DNS name in the certificate of hop B. */
export const SERVER_NAME = 'web.bench.internal'

/** PEM files of one hop. */
export interface HopCertificate {
  readonly certificate: string
  readonly key: string
  /** Certificate and key in one file, as HAProxy wants it. */
  readonly bundle: string
}

/** All files. */
export interface PeerCertificates {
  readonly ca: string
  readonly hopA: HopCertificate
  readonly hopB: HopCertificate
}

/** Makes the CA and both leaves in `directory`. */
export async function createPeerCertificates(directory: string): Promise<PeerCertificates> {
  const ca = join(directory, 'ca.pem')
  const caKey = join(directory, 'ca.key')
  const openssl = requireTool('openssl')
  const newCertificate = [
    openssl,
    'req',
    '-x509',
    '-nodes',
    '-days',
    '2',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:prime256v1',
  ]
  await run([...newCertificate, '-subj', '/CN=hostmesh bench CA', '-keyout', caKey, '-out', ca])
  const leaf = async (name: string, subjectAltName: string): Promise<HopCertificate> => {
    const files = {
      certificate: join(directory, `${name}.pem`),
      key: join(directory, `${name}.key`),
      bundle: join(directory, `${name}-bundle.pem`),
    }
    await run([
      ...newCertificate,
      '-CA',
      ca,
      '-CAkey',
      caKey,
      '-subj',
      `/CN=${name}`,
      '-addext',
      'basicConstraints=critical,CA:FALSE',
      '-addext',
      'extendedKeyUsage=serverAuth,clientAuth',
      '-addext',
      `subjectAltName=${subjectAltName}`,
      '-keyout',
      files.key,
      '-out',
      files.certificate,
    ])
    await run(['/bin/sh', '-c', 'cat "$1" "$2" >"$3"', 'sh', ...Object.values(files)])
    return files
  }
  return {
    ca,
    hopA: await leaf('hop-a', 'URI:spiffe://bench.consul/ns/default/dc/dc1/svc/client'),
    hopB: await leaf(
      'hop-b',
      `URI:spiffe://bench.consul/ns/default/dc/dc1/svc/web,DNS:${SERVER_NAME}`,
    ),
  }
}

/** Writes a configuration file and gives its path. */
export async function writeConfig(path: string, text: string): Promise<string> {
  await writeFile(path, text)
  return path
}
