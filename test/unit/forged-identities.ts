/**
 * Names in certificates that were made to pass for web's, by what is wrong with them. For the reader of
 * names, and for the listeners that rely on it.
 */
import type { Extension } from '../../src/authority/issue-certificate.ts'
import { altNames, DNS, type Name, URI, WEB_ID } from './identity-fixtures.ts'

/** A subjectAltName with one URI, whatever it says. */
export const uri = (text: string): Extension[] => [altNames([URI, text])]

/** Extensions of certificates that a genuine CA was tricked into signing; none may pass for web. */
export const forgeries: Record<string, Extension[]> = {
  'a NUL and more after the URI': uri(`${WEB_ID}\0.evil`),
  'a NUL at the end': uri(`${WEB_ID}\0`),
  'a NUL in front': uri(`\0${WEB_ID}`),
  'two URIs': [altNames([URI, WEB_ID], [URI, 'spiffe://mesh.test/ns/default/dc/dc1/svc/db'])],
  'the same URI twice': [altNames([URI, WEB_ID], [URI, WEB_ID])],
  'two extensions of one URI each': [...uri(WEB_ID), ...uri('spiffe://mesh.test/x')],
  'the URI as a DNS name': [altNames([DNS, WEB_ID])],
  'the URI in the text of a DNS name': [altNames([DNS, `x, URI:${WEB_ID}`])],
  'a DNS name that is none beside the URI': [altNames([DNS, 'x, URI:spiffe://a/b'], [URI, WEB_ID])],
  'the URI as an email address': [altNames([1, WEB_ID])],
  'the URI as a registered id': [altNames([8, WEB_ID])],
  'no alternative name at all': [],
  'an alternative name without names': [altNames()],
  'an empty URI': uri(''),
  'an upper-case scheme': uri(WEB_ID.replace('spiffe', 'SPIFFE')),
  'an upper-case trust domain': uri(WEB_ID.replace('mesh', 'MESH')),
  'an upper-case service': uri(WEB_ID.replace(/web$/, 'WEB')),
  'a trailing dot after the trust domain': uri(WEB_ID.replace('mesh.test', 'mesh.test.')),
  'percent-encoding': uri(WEB_ID.replace(/web$/, '%77eb')),
  'a trailing slash': uri(`${WEB_ID}/`),
  'a query': uri(`${WEB_ID}?x=1`),
  'a fragment': uri(`${WEB_ID}#x`),
  'dots in the path': uri(WEB_ID.replace('svc/web', 'svc/db/../web')),
  'a doubled slash': uri(WEB_ID.replace('/svc/', '//svc/')),
  'a port': uri(WEB_ID.replace('mesh.test', 'mesh.test:443')),
  'a user': uri(WEB_ID.replace('mesh.test', 'mesh.test@evil.test')),
  'a longer trust domain': uri(WEB_ID.replace('mesh.test', 'mesh.test.evil.test')),
  'a line feed at the end': uri(`${WEB_ID}\n`),
  'a space in front': uri(` ${WEB_ID}`),
  'a letter that looks like one of ours': uri(WEB_ID.replace('mesh', 'm\xd0\xb5sh')),
  'the byte 0xff': uri(`${WEB_ID}\xff`),
  'a URI of 64 KiB': uri(`${WEB_ID}${'a'.repeat(65_536)}`),
  'a URI of 3 KiB': uri(`${WEB_ID}${'a'.repeat(3_072)}`),
  '300 names': [altNames([URI, WEB_ID], ...Array.from({ length: 299 }, (): Name => [DNS, 'a.b']))],
  'the trust domain only': uri('spiffe://mesh.test'),
  'the identity of an agent': uri('spiffe://mesh.test/agent/client/dc/dc1/id/web'),
  'the identity of a host': uri('spiffe://mesh.test/host/web'),
  'the identity of the CA': uri('spiffe://mesh.test/ca'),
  'the identity of a gateway': uri('spiffe://mesh.test/gateway/mesh/dc/dc1'),
}
