/**
 * The problems of a host as values: a stable code, a sentence, and a hint.
 *
 * Every part that can fail reports with these; `src/daemon/problems.ts` collects them, and the status, its exit code,
 * the metrics, the log and systemd's status line show that one list. A code is one of the table below, or that of the
 * MeshError that caused the problem.
 */
import { describeError, errorCode, isErrorCode, MeshError } from '../lib/errors.ts'

/** What one code means. */
export interface ProblemKind {
  /** A sentence. */
  readonly cause: string
  /** What to do next. */
  readonly hint: string
  /** Whether the host is not ready while it has the problem: it does not fully serve its services. */
  readonly blocks?: boolean
}

/** The codes of problems, with cause and default hint. */
export const problemCodes = {
  HM_ACCESS_LOG_FAILED: {
    cause: 'The file of the access log cannot be written: its lines are lost, and counted.',
    hint: 'Make room on its disk, or set accessLog.to to a file in a folder that the daemon may write',
    blocks: false,
  },
  HM_CAPTURE_BLOCKED: {
    cause: 'A filter of another program drops what capture diverts: captured connections time out.',
    hint: 'Let packets with the mark of capture pass in that chain; the message names it',
    blocks: true,
  },
  HM_CAPTURE_DRIFT: {
    cause: 'The capture rules in the kernel are not the wanted ones, or cannot be looked at.',
    hint: 'hostmesh capture show names the difference; another program may rewrite the firewall',
    blocks: true,
  },
  HM_CAPTURE_FAILED: {
    cause: 'The daemon could not keep its capture rules as they should be.',
    hint: 'hostmesh capture show names the difference; the log of the daemon has the failure',
    blocks: true,
  },
  HM_CAPTURE_MARK_CLASH: {
    cause:
      'An ip rule of another program uses the packet mark, the table or the place of those of capture.',
    hint: 'Set capture.mark, capture.routeTable or capture.rulePriority to what nobody else uses (ip rule)',
    blocks: false,
  },
  HM_CAPTURE_ROUTE_MISSING: {
    cause:
      'No program of this host can dial a virtual address of that family: there is no route to it.',
    hint: 'Remove the route that refuses the range (ip route get <address>), or give it a default route',
    blocks: true,
  },
  HM_CAPTURE_WORKLOAD_MISSING: {
    cause:
      'The unit, user or address by which a service is recognized does not exist, so its connections are not captured.',
    hint: 'Start the unit (systemctl status <unit>), or correct services[].identity',
    blocks: true,
  },
  HM_CATALOG_CRITICAL: {
    cause:
      'A service of this host fails a health check in the catalog, so callers are sent elsewhere.',
    hint: 'Start the service; if it runs, hostmesh services <name> shows which check fails',
  },
  HM_CATALOG_ENTRY_UNUSABLE: {
    cause:
      'The catalog says something of a service or an instance that cannot be used; the rest of it is.',
    hint: 'Correct the registration or configuration entry that the message names',
  },
  HM_CATALOG_FILE_BROKEN: {
    cause:
      'The catalog file cannot be read or is not valid; the last good one stays in use, over a restart too.',
    hint: 'Correct the file; it is read again by itself. hostmesh config validate names every mistake, docs/file-catalog.md has the keys',
  },
  HM_CATALOG_NOT_LISTED: {
    cause:
      'The catalog does not list a service of this host as it is configured, so nobody is sent here.',
    hint: 'Give the service the same node, ID and port in the catalog and in the configuration',
  },
  HM_CATALOG_TOO_LARGE: {
    cause: 'The catalog holds more than this host follows or keeps.',
    hint: 'Set catalog.watch: on-demand, or follow fewer services',
  },
  HM_CA_UNREACHABLE: {
    cause: 'The CA does not answer; certificates stay in use until they end.',
    hint: 'See whether hostmesh ca serve runs there, and whether this host reaches its port',
  },
  HM_CERT_ENDED: {
    cause: 'A certificate has ended, or does not hold yet: peers refuse this host.',
    hint: 'hostmesh certs shows the dates; see whether the CA can be reached and the clock is right',
    blocks: true,
  },
  HM_CERT_NOT_RENEWED: {
    cause:
      'A certificate ends soon and nobody has renewed it: peers refuse this host when it is over.',
    hint: 'hostmesh certs shows the dates; see whether the CA can be reached and the clock is right',
  },
  HM_CERT_REFUSED: {
    cause: 'A certificate, key or root cannot be used; the last good one stays in use.',
    hint: 'Issue it again, for this trust domain and service; hostmesh certs shows what is in use',
  },
  HM_CERT_NOT_ISSUED: {
    cause: 'The CA does not issue a certificate to this host or one of its services.',
    hint: 'See what the CA allows this host: hostmesh ca status on the CA; then a new join token if it is needed',
  },
  HM_CERT_NOT_KEPT: {
    cause: 'Certificates cannot be written down: after a restart this host needs its CA.',
    hint: 'Make room, or give the state directory to the user of the daemon',
  },
  HM_CONFIG_INVALID: {
    cause: 'The configuration file is broken; the daemon goes on with what it read before.',
    hint: 'hostmesh config validate names every mistake; correct them and reload once more',
  },
  HM_CONSUL_CREDENTIAL_UNUSABLE: {
    cause: 'The token or the TLS files for Consul cannot be used; the last good ones stay in use.',
    hint: 'Correct the file that the message names; it is read again by itself',
  },
  HM_CONSUL_FORBIDDEN: {
    cause: 'The token does not allow what this host needs to know or to say.',
    hint: 'Add the line that the message names to the policy of the token',
  },
  HM_CONSUL_INCOMPLETE: {
    cause:
      'Consul answers, but not with all that it knows: its servers have no leader, or the token does not see everything.',
    hint: 'Give the token the policy that the message names, or bring back a majority of the servers',
  },
  HM_CONSUL_NOT_REGISTERED: {
    cause: 'A service of this host is not in Consul as configured, so others are not sent here.',
    hint: 'See what the agent has under that ID: consul catalog services, consul services deregister',
  },
  HM_CONSUL_QUERY_FAILED: {
    cause: 'Consul does not answer one question; its last good answer stays in use.',
    hint: 'See the log of the Consul agent; the message names the path',
  },
  HM_CONSUL_UNREACHABLE: {
    cause: 'The Consul agent does not answer; what is known stays in use.',
    hint: 'Start the agent (systemctl status consul), or correct catalog.address',
  },
  HM_HOST_DRAINING: {
    cause: 'The daemon is stopping: it takes no new connections.',
    hint: 'Wait until it has stopped; systemctl start hostmesh brings it back',
    blocks: true,
  },
  HM_HOST_NOT_READY: {
    cause: 'The daemon has started and still waits for something that it needs to serve.',
    hint: 'What it waits for comes by itself when its origin answers; another problem may say why not',
    blocks: true,
  },
  HM_INTENTION_UNSUPPORTED: {
    cause: 'An intention has a part that hostmesh cannot obey; it is taken as deny.',
    hint: 'Write it without the part that the message names: docs/limits.md has what is obeyed',
  },
  HM_LIMIT_CALLERS_BANNED: {
    cause:
      'A caller breaks the tunnel protocol again and again; its handshakes are refused for a while.',
    hint: 'See what runs with that identity; if it is no attack, update hostmesh there',
  },
  HM_LIMIT_DESCRIPTORS_SHORT: {
    cause:
      'The process has few file descriptors left: new connections of whoever has most are refused.',
    hint: 'Raise LimitNOFILE= of the unit (systemctl edit hostmesh), or see why that caller has so many: hostmesh connections',
  },
  HM_LIMIT_MEMORY_SHORT: {
    cause:
      'Too many bytes wait for readers: connections of whoever makes most of them wait are broken off.',
    hint: 'See why that caller does not read (hostmesh connections), or raise limits.heldMiB',
  },
  HM_LIMIT_STREAMS_SHORT: {
    cause:
      'Callers from other hosts open streams that come to nothing, or more than may wait for their preface: those of whoever has most are refused.',
    hint: 'See what runs with that identity, and at that address, and whether an intention denies what it asks for',
  },
  HM_LIMIT_TUNNELS_SHORT: {
    cause:
      'A caller from another host, or all of one host together, opens more tunnels than one may have: further ones are refused.',
    hint: 'See what runs at that address; a host with very many services needs more: raise limits.tunnelsPerHost',
  },
  HM_RELOAD_FAILED: {
    cause:
      'A reload did not work out: the daemon runs on with the configuration it was started with.',
    hint: 'Correct what is named, then systemctl reload hostmesh again; journalctl -u hostmesh has what the new process said',
  },
  HM_REPORTS_UNDELIVERED: {
    cause: 'An aggregator takes no reports of this host; they are kept and delivered later.',
    hint: 'See whether the aggregator runs, and whether an intention allows hostmesh to call it: hostmesh explain hostmesh hostmesh-aggregator',
  },
  HM_STATE_NOT_KEPT: {
    cause:
      'Something is not kept for a restart: the state directory or a file in it cannot be used.',
    hint: 'Make room, or give the directory to the user of the daemon with mode 0700',
  },
  HM_STATE_NODE_RENAMED: {
    cause: 'Consul knows this host by another name than the one the daemon was started with.',
    hint: 'systemctl restart hostmesh',
  },
  HM_PORT_TAKEN: {
    cause:
      'Another program has a port of the daemon since a time when the daemon was stopped. It gets nothing: rules lead to another port of the daemon.',
    hint: 'See who it is (as root: ss -lntup), end it, and restart the daemon',
    blocks: false,
  },
  HM_PORTS_NOT_RESERVED: {
    cause: 'The system may give ports of the daemon to outgoing connections while it is away.',
    hint: 'Reserve them: sysctl -w net.ipv4.ip_local_reserved_ports=<ports>; the message names them',
    blocks: false,
  },
  HM_STATE_REMEMBERED: {
    cause:
      'What the host acts on is of an earlier run and nothing has confirmed it since, or it is older than state.maxStale.',
    hint: 'It is confirmed by itself when the catalog and the CA answer; see why they do not',
  },
  HM_VIRTUAL_ADDRESS_CONFLICT: {
    cause: 'Two services claim one virtual address; the one that had it keeps it.',
    hint: 'Take the address from one of them in the catalog',
  },
  HM_VIRTUAL_RANGE_FULL: {
    cause: 'A range of virtual addresses has none left for a service.',
    hint: 'Make capture.virtualRange or capture.virtualRange6 larger',
  },
  HM_WORKER_STOPPED: {
    cause: 'A data-plane worker does not run.',
    hint: 'The log of the daemon says why; systemctl restart hostmesh if it does not come back',
  },
} as const satisfies Readonly<Record<string, ProblemKind>>

/** A code of the table. */
export type ProblemCode = keyof typeof problemCodes

function isProblemCode(code: string): code is ProblemCode {
  return Object.hasOwn(problemCodes, code)
}

/** Optional parts of a problem. */
export interface ProblemDetails {
  /** What to do next; the hint of the code unless given. */
  readonly hint?: string | undefined
  /** What the problem concerns, such as a service: distinguishes several problems of one code. */
  readonly subject?: string | undefined
}

/** One thing that is wrong with the host now. */
export class Problem {
  /** `HM_<SUBJECT>_<FAILURE>`; docs/errors.md lists all. */
  readonly code: string
  /** One sentence. It may contain numbers that change while the problem is the same. */
  readonly message: string
  /** What to do next. */
  readonly hint: string
  readonly subject: string | undefined
  /** Whether it keeps the host from being ready. */
  readonly blocks: boolean

  constructor(code: ProblemCode, message: string, details: ProblemDetails = {}) {
    this.code = code
    this.message = message
    this.hint = details.hint ?? problemCodes[code].hint
    this.subject = details.subject
    const kind: ProblemKind = problemCodes[code]
    this.blocks = kind.blocks ?? false
  }

  /**
   * Makes a problem from an error. It keeps the error's code and hint if there are any; otherwise its code is
   * `fallback`.
   */
  static of(
    thrown: unknown,
    fallback: ProblemCode,
    details: ProblemDetails & { readonly message?: string | undefined } = {},
  ): Problem {
    const code = errorCode(thrown)
    const hint = details.hint ?? (thrown instanceof MeshError ? thrown.hint : undefined)
    const kind = isProblemCode(code) ? code : fallback
    const message = details.message ?? describeError(thrown)
    const problem = new Problem(kind, message, { ...details, hint })
    const isOurs = isErrorCode(code) && code !== 'HM_INTERNAL'
    return isOurs ? Object.assign(problem, { code }) : problem
  }

  /** The same problem, where the host is ready all the same. */
  withoutBlocking(): Problem {
    const { code, message, hint, subject } = this
    return Object.assign(new Problem('HM_HOST_NOT_READY', message, { hint, subject }), {
      code,
      blocks: false,
    })
  }

  /** Identifies this problem among the current ones, and stays the same while the problem lasts. */
  get key(): string {
    return `${this.code} ${this.subject ?? ''}`
  }

  toString(): string {
    return this.message
  }
}
