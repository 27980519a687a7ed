/**
 * Finds rules of other programs that overwrite the mark of capture, or the packet priority used with it. Diverted
 * packets are then lost: connections time out or are refused. Such rules can only be reported.
 *
 * The mark must survive from our chain on the output hook to our chain on the prerouting hook. A rule in a chain
 * between them keeps it, overwrites it (a plain value, the connection's mark), or sets it only for other packets.
 */
import { Problem } from '../../model/problem.ts'
import type { RunCommand } from './command.ts'
import type { Family } from './rules.ts'

/** nft's names of priorities. */
const PRIORITIES: Readonly<Record<string, number>> = {
  raw: -300,
  mangle: -150,
  dstnat: -100,
  filter: 0,
  security: 50,
  srcnat: 100,
}

/** Priorities of our chains on the output hook and on the prerouting hook. */
const SET_AT = -140
const READ_AT = 20

const TOOLS: Record<Family, string> = { v4: 'iptables', v6: 'ip6tables' }

/** Such rules in the mangle tables of iptables. */
export async function marksInIptables(
  run: RunCommand,
  families: readonly Family[],
  mark: number,
): Promise<readonly Problem[]> {
  const problems = families.map(async (family) => {
    try {
      const listed = await run(TOOLS[family], ['-w', '5', '-t', 'mangle', '-S'])
      return listed.status === 0 ? marksInMangle(TOOLS[family], listed.stdout, mark) : []
    } catch {
      // Not installed.
      return []
    }
  })
  return (await Promise.all(problems)).flat()
}

/** Such rules in native tables, from nft's listing of the ruleset. Pure. */
export function marksInRuleset(ruleset: string, mark: number): readonly Problem[] {
  return ruleset.split(/^(?=table )/m).flatMap((text) => {
    const table = /^table (\S+ \S+) \{/.exec(text)?.[1]
    // The mangle tables of iptables are reported by marksInIptables, in iptables' own words.
    if (table === undefined || table.startsWith('inet hostmesh') || /^ip6? mangle$/.test(table))
      return []
    const chains = text.split(/^(?=\tchain )/m).slice(1)
    const hasPath = chains.some(isBetween)
    return chains.flatMap((chain) => {
      const name = /^\tchain (\S+) /.exec(chain)?.[1] ?? ''
      const isBase = /\n\t\ttype /.test(chain)
      if (isBase ? !isBetween(chain) : !hasPath) return []
      return chain
        .split('\n')
        .map((line) => line.trim())
        .flatMap((rule) => {
          const where = `chain ${name} of table ${table}`
          if (writesOver(rule, mark)) return [clash(where, rule, mark)]
          return /\bmeta priority set /.test(rule) && !leavesElsewhere(rule)
            ? [priorityClash(where, rule)]
            : []
        })
    })
  })
}

/** Such rules in the mangle table of iptables, as `-S` prints it. Pure. */
export function marksInMangle(tool: string, listed: string, mark: number): readonly Problem[] {
  return listed.split('\n').flatMap((line) => {
    if (!line.startsWith('-A ') || line.startsWith('-A OUTPUT') || isOfOthers(line)) return []
    if (/ -j CLASSIFY /.test(line) && !leavesElsewhere(line))
      return [priorityClash(`mangle table of ${tool}`, line)]
    const [, words = '0xffffffff'] =
      /--set-xmark \S+?\/(\S+)/.exec(line) ??
      /-j CONNMARK --restore-mark(?: --nfmask (\S+))?/.exec(line) ??
      []
    const isSet = / -j (MARK --set-xmark|CONNMARK --restore-mark)/.test(line)
    return isSet && (Number(words) & mark) !== 0
      ? [clash(`mangle table of ${tool}`, line, mark)]
      : []
  })
}

/** Whether diverted packets pass a base chain while they carry the mark. */
function isBetween(chain: string): boolean {
  const [, hook = '', word = '', sign = '+', more = '0'] =
    /\n\t\ttype \S+ hook (\S+) priority (\S+?)(?: ([+-]) (\d+))?;/.exec(chain) ?? []
  const base = PRIORITIES[word] ?? Number(word)
  const priority = base + Number(more) * (sign === '-' ? -1 : 1)
  return (
    (hook === 'output' && priority > SET_AT) ||
    hook === 'postrouting' ||
    (hook === 'prerouting' && priority < READ_AT)
  )
}

/** Whether a rule changes our bit of the mark. */
function writesOver(rule: string, mark: number): boolean {
  const value =
    /meta mark set (.*?)(?: (?:accept|return|counter|ct mark set|goto|jump)\b.*)?$/.exec(rule)?.[1]
  if (value === undefined || isOfOthers(rule)) return false
  const kept = /^meta mark(?: & (0x[0-9a-f]+))?(?: [|^] (0x[0-9a-f]+))?$/.exec(value)
  if (kept === null) return (Number(value) & mark) === 0 || !/^(0x[0-9a-f]+|\d+)$/.test(value)
  const [, keeps = '0xffffffff', sets = '0x0'] = kept
  return (Number(keeps) & mark) === 0 || (Number(sets) & mark) !== 0
}

/** Whether a rule cannot match diverted packets, which are TCP and use loopback. */
function isOfOthers(rule: string): boolean {
  return (
    /\b(udp|icmp|icmpv6|esp) |\bl4proto (udp|icmp|ipv6-icmp)|-p (udp|icmp)/.test(rule) ||
    /(?:iifname|iif|-i) "?(?!lo\b)[\w.@*+-]+"?/.test(rule)
  )
}

/** Whether a rule matches only packets that leave by another device than loopback. */
function leavesElsewhere(rule: string): boolean {
  return (
    isOfOthers(rule) ||
    /(?:! -o|oif(?:name)? !=) "?lo\b|(?:oifname|oif|-o) "?(?!lo\b|!=)[\w.@*+-]+"?/.test(rule)
  )
}

function priorityClash(where: string, rule: string): Problem {
  return new Problem(
    'HM_CAPTURE_MARK_CLASH',
    `A rule of the ${where} writes over the packet priority, which tells capture who is calling: ${rule}`,
    {
      subject: `${where} ${rule}`,
      hint: 'Have it leave out what leaves by lo: nft: oif != lo, iptables: ! -o lo',
    },
  )
}

function clash(where: string, rule: string, mark: number): Problem {
  const bit = `0x${mark.toString(16)}`
  return new Problem(
    'HM_CAPTURE_MARK_CLASH',
    `A rule of the ${where} writes over the mark of capture (${bit}): ${rule}`,
    {
      subject: `${where} ${rule}`,
      hint: `Have it keep that bit (nft: meta mark set meta mark & ${bit} | VALUE; iptables: a mask without it), leave out what comes in by lo, or set capture.mark to a bit that it keeps`,
    },
  )
}
