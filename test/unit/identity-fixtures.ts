/**
 * Certificates for the identity tests: a CA in memory, its leaves, and leaves that are wrong on purpose.
 */
import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto'
import forge from 'node-forge'
import {
  type Authority,
  basicConstraints,
  distinguishedName,
  type Extension,
  type IssuedCertificate,
  issueLeaf,
  issueRoot,
  signCertificate,
  tagged,
} from '../../src/authority/issue-certificate.ts'
import { readRoots } from '../../src/controlplane/identity/x509.ts'
import type { TrustBundle } from '../../src/model/certificate.ts'

const { asn1 } = forge

export const TRUST_DOMAIN = 'mesh.test'
export const HOUR_MS = 3_600_000
export const WEB_ID = `spiffe://${TRUST_DOMAIN}/ns/default/dc/dc1/svc/web`

/** A CA, ready to sign, and the bundle that trusts it. */
export interface TestAuthority extends Authority {
  readonly certificatePem: string
  readonly bundle: TrustBundle
}

export function makeAuthority(nowMs = Date.now(), lifetimeMs = 1_000 * HOUR_MS): TestAuthority {
  const root = issueRoot(TRUST_DOMAIN, { nowMs, lifetimeMs })
  return {
    certificate: new X509Certificate(root.certificatePem),
    privateKey: createPrivateKey(root.privateKeyPem),
    certificatePem: root.certificatePem,
    bundle: readRoots(root.certificatePem, TRUST_DOMAIN),
  }
}

export function makeLeaf(
  authority: Authority,
  service = 'web',
  nowMs = Date.now(),
  lifetimeMs = HOUR_MS,
): IssuedCertificate {
  const identity = { trustDomain: TRUST_DOMAIN, datacenter: 'dc1', service }
  return issueLeaf(authority, identity, { nowMs, lifetimeMs })
}

/** What a crafted certificate says; signed by a real CA whatever it is. */
export interface Crafted {
  readonly extensions: readonly Extension[]
  readonly commonName?: string
  readonly isCa?: boolean
}

/** A certificate with these extensions. Its signature and times are good. */
export function craft(authority: Authority, crafted: Crafted): IssuedCertificate {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const subject = asn1.fromDer(subjectOf(authority.certificate).toString('latin1'))
  const certificatePem = signCertificate(
    {
      subject: distinguishedName(crafted.commonName),
      issuer: subject,
      publicKey,
      notBeforeMs: Date.now() - HOUR_MS,
      notAfterMs: Date.now() + HOUR_MS,
      extensions: [basicConstraints(crafted.isCa ?? false), ...crafted.extensions],
    },
    authority.privateKey,
  )
  return {
    certificatePem,
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
}

function subjectOf(certificate: X509Certificate): Buffer {
  const tbs = childrenOf(asn1.fromDer(certificate.raw.toString('latin1')))[0]
  return Buffer.from(asn1.toDer(childrenOf(tbs!)[5]!).getBytes(), 'latin1')
}

function childrenOf(node: forge.asn1.Asn1): forge.asn1.Asn1[] {
  return node.value as forge.asn1.Asn1[]
}

/** A GeneralName: context tag number and content, one character a byte. */
export type Name = readonly [tag: number, content: string]

export const URI = 6
export const DNS = 2

/** A subjectAltName extension with these names. */
export function altNames(...names: readonly Name[]): Extension {
  const list = names.map(([tag, content]) => tagged(tag, content))
  const value = asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, list)
  return { oid: '2.5.29.17', critical: true, value }
}

export function derOf(pem: string): Buffer {
  return Buffer.from(pem.replaceAll(/-----[A-Z ]+-----|\s/g, ''), 'base64')
}
