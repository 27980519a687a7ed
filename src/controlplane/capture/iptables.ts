/**
 * The interface to iptables, one family at a time: reads rules, applies a transaction, turns failures
 * into errors. Does not depend on plans.
 */
import { type ErrorCode, MeshError } from '../../lib/errors.ts'
import type { CommandResult, RunCommand } from './command.ts'
import type { Family } from './rules.ts'
import { parseSavedRules, type SavedRules } from './saved-rules.ts'

/** How long the legacy variant waits for other users of its lock; the nft variant needs no lock. */
const LOCK_WAIT_SECONDS = 5

/** The tools of one family. A host may have several variants; the plain name is the one it uses. */
export interface IptablesTools {
  readonly save: string
  readonly restore: string
}

/** The variant in use on this host, as the distribution's alternatives select it. */
export const defaultTools: Record<Family, IptablesTools> = {
  v4: { save: 'iptables-save', restore: 'iptables-restore' },
  v6: { save: 'ip6tables-save', restore: 'ip6tables-restore' },
}

/** Every variant that may still hold rules of ours because it was in use earlier. */
export const allTools: Record<Family, readonly IptablesTools[]> = {
  v4: variants('iptables', defaultTools.v4),
  v6: variants('ip6tables', defaultTools.v6),
}

function variants(name: string, used: IptablesTools): readonly IptablesTools[] {
  const named = ['nft', 'legacy'].map((variant) => ({
    save: `${name}-${variant}-save`,
    restore: `${name}-${variant}-restore`,
  }))
  return [used, ...named]
}

/** All tables in use, with counters. Names no table, so it loads no kernel module. */
export async function readRules(run: RunCommand, tools: IptablesTools): Promise<SavedRules> {
  const result = await run(tools.save, ['-c'])
  if (result.status !== 0) throw toolError(tools.save, 'read the rules', result)
  return parseSavedRules(result.stdout)
}

/** Applies one text of `iptables-restore --noflush`; each table in it is atomic. */
export async function applyRules(
  run: RunCommand,
  tools: IptablesTools,
  text: string,
): Promise<void> {
  if (text === '') return
  const args = ['--noflush', `--wait=${LOCK_WAIT_SECONDS}`]
  const result = await run(tools.restore, args, text)
  if (result.status !== 0) throw toolError(tools.restore, 'apply the rules', result, text)
}

/** The error for a tool that failed, with a hint where its output identifies the cause. */
export function toolError(
  tool: string,
  intent: string,
  result: CommandResult,
  input = '',
): MeshError {
  const words = result.stderr.trim().replaceAll(/\s*\n\s*/g, '; ') || `status ${result.status}`
  const line = Number(/line:? (\d+)/.exec(result.stderr)?.[1])
  const culprit = input.split('\n')[line - 1]
  const where = culprit === undefined || culprit === 'COMMIT' ? '' : ` (${culprit})`
  for (const { pattern, code, hint } of causes)
    if (pattern.test(result.stderr))
      return new MeshError(code, `${tool} could not ${intent}: ${words}${where}`, { hint })
  return new MeshError('HM_CAPTURE_APPLY_FAILED', `${tool} could not ${intent}: ${words}${where}`)
}

/** The first match decides. The patterns are messages of iptables 1.8 and ipset 7. */
const causes: readonly { pattern: RegExp; code: ErrorCode; hint: string }[] = [
  {
    pattern: /xtables\.lock: Permission denied|xtables\.lock: Read-only/,
    code: 'HM_CAPTURE_PERMISSION_DENIED',
    hint: 'The legacy variant of iptables needs root for its lock: use iptables-nft, or apply the rules from ExecStartPre=+ of the unit',
  },
  {
    // The set match asks for its version through a raw socket.
    pattern: /Permission denied|Operation not permitted|Can't open socket to ipset/i,
    code: 'HM_CAPTURE_PERMISSION_DENIED',
    hint: 'Run as root or with both capabilities (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)',
  },
  {
    pattern:
      /insmod|missing kernel module|Protocol not supported|Table does not exist|not supported/i,
    code: 'HM_CAPTURE_KERNEL_UNSUPPORTED',
    hint: 'Load the kernel modules: modprobe -a xt_REDIRECT xt_owner xt_cgroup xt_set xt_addrtype xt_multiport xt_comment ipt_REJECT ip6t_REJECT ip_set_hash_ipport',
  },
  {
    pattern: /xtables lock/i,
    code: 'HM_CAPTURE_LOCKED',
    hint: 'Another program holds the lock of iptables; try again',
  },
]
