/**
 * Station `certificate`: the certificate that this host presents for its side of a tunnel, whether it is valid at the
 * time of the facts, and which identity the other side must prove.
 */
import type { HostFacts } from '../../model/facts.ts'
import type { MeshService } from '../../model/snapshot.ts'
import { formatServerName, formatSpiffeId } from '../../model/spiffe-id.ts'
import type { Draft } from './draft.ts'
import { membershipProblem } from './host.ts'

/** The caller's side: what `source` presents to an instance of `service`, unless no other host is involved. */
export function describeCertificate(
  draft: Draft,
  facts: HostFacts,
  asked: { readonly source: string; readonly service: MeshService; readonly isNeeded: boolean },
): void {
  const { source, service, isNeeded } = asked
  if (!isNeeded) {
    draft.station('certificate', 'none', 'None is needed: no other host is involved')
    return
  }
  const { trustDomain } = facts.certificates
  if (trustDomain !== null) {
    const wanted = { trustDomain, datacenter: service.datacenter, service: service.name }
    draft.expectedSpiffeId = formatSpiffeId(wanted)
    draft.serverName = formatServerName(wanted)
  }
  describeLeaf(draft, facts, { service: source, role: 'It shows' })
}

/** The certificate that this host has for one of its services; `role` begins the sentence that names it. */
export function describeLeaf(
  draft: Draft,
  facts: HostFacts,
  shown: { readonly service: string; readonly role: string },
): void {
  const { service, role } = shown
  const { certificates } = facts
  const leaf = certificates.leaves.find((each) => each.service === service)
  const expected =
    draft.expectedSpiffeId === null
      ? []
      : [`Expects ${draft.expectedSpiffeId}, server name ${draft.serverName}`]
  const trust = [
    ...expected,
    `Trust domain ${certificates.trustDomain ?? 'not known yet'}, roots accepted: ${certificates.roots.length}`,
  ]
  const bad = (why: string): void => {
    draft.station('certificate', 'bad', `The certificate of ${service} ${why}`, [
      ...trust,
      ...certificates.problems,
    ])
    draft.fail(
      'unreachable',
      `No tunnel can be made for ${service}: its certificate ${why}`,
      ...certificates.problems,
      'hostmesh certs and hostmesh status say what is missing',
    )
  }
  if (leaf === undefined || certificates.trustDomain === null) return bad('is missing')
  draft.leaf = leaf
  const nowMs = Date.parse(facts.writtenAt)
  if (nowMs >= Date.parse(leaf.notAfter)) return bad(`has expired at ${leaf.notAfter}`)
  if (nowMs < Date.parse(leaf.notBefore)) return bad(`is not valid before ${leaf.notBefore}`)
  if (certificates.revokedSerials.includes(leaf.serialNumber)) return bad('is revoked')
  const expelled = membershipProblem(facts)
  if (expelled !== undefined)
    return bad(`is rejected by every host that has the current trust bundle: ${expelled.message}`)
  draft.station('certificate', 'good', `${role} ${leaf.spiffeId}`, [
    `Serial number ${leaf.serialNumber}, valid until ${leaf.notAfter}`,
    ...trust,
  ])
}
