/**
 * `hostmesh certs`: the certificates of this host's services and the accepted roots. Never a key.
 */
import type { Command } from 'commander'
import { MeshError } from '../lib/errors.ts'
import type { CertsDocument, LeafEntry } from '../model/admin.ts'
import { type AdminOptions, adminCommand, fetchList, printJson } from './admin-command.ts'
import { formatAge } from './render/format.ts'
import { type Cell, renderTable } from './render/table.ts'

/** A certificate with less than this share of its lifetime left should have been renewed long before. */
const LATE_SHARE = 0.25

/** The `certs` command. */
export function certsCommand(): Command {
  return adminCommand('certs', 'List the certificates of the local services and the accepted roots')
    .argument('[service]', 'show only the certificate of this service')
    .action(async (service: string | undefined, _options: unknown, command: Command) => {
      const { addr, output } = command.optsWithGlobals<AdminOptions>()
      const all = await fetchList<CertsDocument>(addr, '/v1/certs', 'leaves')
      const document = service === undefined ? all : only(all, service)
      if (output === 'json') printJson(document)
      else console.log(renderCerts(document, Date.now()))
    })
}

function only(document: CertsDocument, service: string): CertsDocument {
  const leaves = document.leaves.filter((leaf) => leaf.service === service)
  if (leaves.length === 0) {
    throw new MeshError(
      'HM_SERVICE_NOT_FOUND',
      `Cannot show the certificate of ${service}: this host has none`,
      { hint: 'A host has certificates of the services that it runs; see hostmesh services' },
    )
  }
  return { ...document, leaves }
}

/** The certificates as a table. */
function renderCerts(document: CertsDocument, nowMs: number): string {
  const leaves =
    document.leaves.length === 0
      ? 'This host has no certificates'
      : renderTable(
          ['SERVICE', 'EXPIRES IN', 'SPIFFE ID', 'SERIAL NUMBER'],
          document.leaves.map((leaf) => [
            leaf.service,
            timeLeft(leaf, nowMs),
            leaf.spiffeId,
            leaf.serialNumber,
          ]),
        )
  const roots =
    document.roots.length === 0
      ? 'This host accepts no root'
      : renderTable(
          ['ACCEPTED ROOT', 'EXPIRES IN', 'TRUST DOMAIN'],
          document.roots.map((root) => [
            shortFingerprint(root.fingerprint),
            formatAge(Date.parse(root.notAfter) - nowMs),
            document.trustDomain ?? '-',
          ]),
        )
  return `${leaves}\n\n${roots}`
}

function timeLeft(leaf: LeafEntry, nowMs: number): Cell {
  const endMs = Date.parse(leaf.notAfter)
  const leftMs = endMs - nowMs
  if (leftMs <= 0) return { text: `expired ${formatAge(-leftMs)} ago`, tone: 'bad' }
  const isLate = leftMs < (endMs - Date.parse(leaf.notBefore)) * LATE_SHARE
  return { text: formatAge(leftMs), tone: isLate ? 'warning' : 'good' }
}

/** The first eight bytes distinguish roots; JSON output has all. */
function shortFingerprint(fingerprint: string): string {
  return `SHA256 ${fingerprint.slice(0, 23)}…`
}
