/**
 * Reads the join token that an operator has placed on this host.
 */
import { MeshError } from '../../lib/errors.ts'
import { readTextFile } from '../../lib/read-text-file.ts'
import { type JoinToken, parseJoinToken } from '../../model/join-token.ts'

const MAX_TOKEN_BYTES = 4_096

/**
 * Reads the token for `host`.
 * @throws MeshError HM_CA_NOT_ENROLLED without a file, HM_FILE_UNREADABLE, HM_CA_TOKEN_EXPOSED, HM_CA_TOKEN_INVALID
 */
export function readTokenFile(tokenFile: string | undefined, host: string): JoinToken {
  if (tokenFile === undefined)
    throw new MeshError(
      'HM_CA_NOT_ENROLLED',
      'This host has no host certificate, and no join token to get one',
      { hint: `Make one with: hostmesh ca token --host ${host}; then set certificates.tokenFile` },
    )
  const file = readTextFile(tokenFile, MAX_TOKEN_BYTES)
  if ((file.mode & 0o007) !== 0)
    throw new MeshError(
      'HM_CA_TOKEN_EXPOSED',
      `Cannot use the join token in ${tokenFile}: everybody on this host may read it`,
      { hint: 'Run chmod 0640 on it; if strangers had access, make a new token' },
    )
  const token = parseJoinToken(file.text, tokenFile)
  if (token.host !== host)
    throw new MeshError(
      'HM_CA_TOKEN_INVALID',
      `Cannot use the join token in ${tokenFile}: it is for ${token.host}, and this host is ${host}`,
      { hint: `Make one with: hostmesh ca token --host ${host}, or correct node.name` },
    )
  return token
}
