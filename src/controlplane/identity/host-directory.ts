/**
 * The directory with a host's certificates: written by `hostmesh ca issue`, or by any program that writes PEM, and read
 * by the daemon (docs/certificates.md, "Files from another program").
 *
 * ```
 *   trust-domain     one line
 *   roots.pem        all roots that are trusted
 *   <service>.pem    certificate, then intermediates
 *   <service>.key    private key, for its owner (and group) only
 * ```
 */
import { join } from 'node:path'
import { MeshError } from '../../lib/errors.ts'
import { readTextFile } from '../../lib/read-text-file.ts'
import type { TrustBundle } from '../../model/certificate.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import { type LeafCandidate, MAX_PEM_BYTES, readRoots } from './x509.ts'

/** A private key in PEM is much smaller. */
const MAX_KEY_BYTES = 32_768

/** The files for the roots. */
export function rootFiles(directory: string): {
  readonly trustDomain: string
  readonly roots: string
} {
  return { trustDomain: join(directory, 'trust-domain'), roots: join(directory, 'roots.pem') }
}

/** The files for one service; {@link requireFileName} checks its name. */
export function leafFiles(
  directory: string,
  service: string,
): { readonly certificate: string; readonly privateKey: string } {
  return {
    certificate: join(directory, `${service}.pem`),
    privateKey: join(directory, `${service}.key`),
  }
}

/**
 * Rejects names that are not service names, and the one whose file name the roots use.
 * @throws MeshError HM_CERT_SERVICE_INVALID
 */
export function requireFileName(service: string): void {
  if (!isServiceName(service))
    throw new MeshError(
      'HM_CERT_SERVICE_INVALID',
      `Cannot name a certificate ${JSON.stringify(service.slice(0, 256))}: it is not a service name`,
      { hint: 'Use a-z, 0-9, "-", "." and "_", at most 128 characters' },
    )
  if (service === 'roots')
    throw new MeshError(
      'HM_CERT_SERVICE_INVALID',
      'Cannot keep the certificate of a service called roots: roots.pem holds the trusted roots',
      { hint: 'Give the service another name, or use certificates.kind: consul' },
    )
}

/**
 * The roots of a host.
 * @throws MeshError HM_FILE_UNREADABLE and what {@link readRoots} throws
 */
export function readHostRoots(directory: string): TrustBundle {
  const files = rootFiles(directory)
  const trustDomain = readTextFile(files.trustDomain, 1_024).text.trim()
  return readRoots(readTextFile(files.roots, MAX_PEM_BYTES).text, trustDomain)
}

/**
 * One service's certificate and key, not yet validated.
 * @throws MeshError HM_FILE_UNREADABLE, HM_CERT_KEY_EXPOSED, HM_CERT_SERVICE_INVALID
 */
export function readHostLeaf(directory: string, service: string): LeafCandidate {
  requireFileName(service)
  const files = leafFiles(directory, service)
  return {
    service,
    certificatePem: readTextFile(files.certificate, MAX_PEM_BYTES).text,
    privateKeyPem: readKeyFile(files.privateKey),
  }
}

/**
 * The text of a private key file.
 * @throws MeshError HM_FILE_UNREADABLE, HM_CERT_KEY_EXPOSED when others may read it or the group may write it
 */
export function readKeyFile(path: string): string {
  const { text, mode } = readTextFile(path, MAX_KEY_BYTES)
  if ((mode & 0o027) !== 0)
    throw new MeshError(
      'HM_CERT_KEY_EXPOSED',
      `Cannot use the private key ${path}: its mode is 0${mode.toString(8)}, so others may read or change it`,
      {
        hint: 'Run chmod 0600 on it; if strangers had access to the host, issue the certificate again',
      },
    )
  return text
}
