/**
 * Checks whether this host can use native tables. Asks the kernel and nft, and changes nothing.
 */
import { MeshError } from '../../lib/errors.ts'
import type { RunCommand } from './command.ts'
import { checkNft, takesLines } from './nft.ts'

/** Why this host cannot use native tables, in one sentence; undefined when it can. Changes nothing. */
export async function nftObstacle(
  run: RunCommand,
  cgroupRoot: string | undefined,
): Promise<string | undefined> {
  if (cgroupRoot !== undefined && cgroupPrefix(cgroupRoot) === undefined)
    return `cgroup v2 is mounted at ${cgroupRoot}, where nft does not look`
  try {
    const problem = await checkNft(run, PROBE)
    if (problem !== undefined) return `nft or the kernel cannot do it: ${problem}`
    return (await takesLines(run)) ? undefined : 'nft was built without its interactive mode'
  } catch (error) {
    if (error instanceof MeshError && error.code === 'HM_CAPTURE_TOOL_MISSING')
      return 'nft is not installed'
    throw error
  }
}

/** Every feature of nft and of the kernel that our tables need. */
const PROBE = `table inet hostmesh_probe {
  map units { type cgroupsv2 : verdict; }
  set none { type cgroupsv2; }
  set open { type ipv4_addr . inet_service; size 8; flags dynamic,timeout; timeout 1h; }
  chain first {
    socket cgroupv2 level 1 vmap @units
    socket cgroupv2 level 1 != @none drop
    meta priority set 1:1
    fib daddr type local return
    delete @open { ip saddr . tcp sport }
    update @open { ip saddr . tcp sport timeout 5s }
    meta l4proto tcp reject with tcp reset
  }
  chain output { type route hook output priority mangle + 10; tcp flags syn goto first
  }
  chain prerouting { type filter hook prerouting priority 20; socket transparent 1 accept
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1 accept
    meta l4proto tcp reject with tcp reset
  }
}
`

/** Where nft looks for cgroups. */
const NFT_CGROUP_ROOT = '/sys/fs/cgroup'

/** The prefix that nft needs for cgroups below this root; undefined when nft cannot name them. */
export function cgroupPrefix(root: string): string | undefined {
  if (root === NFT_CGROUP_ROOT || root === '') return ''
  return root.startsWith(`${NFT_CGROUP_ROOT}/`)
    ? `${root.slice(NFT_CGROUP_ROOT.length + 1)}/`
    : undefined
}
