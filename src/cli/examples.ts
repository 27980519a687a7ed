/**
 * Examples of every command, for its help and its manual page. A test parses each of them.
 */

/** By the words of a command: command lines without the name of the program, and what they are for. */
export const examples: Readonly<Record<string, readonly (readonly [line: string, why: string])[]>> =
  {
    run: [['run --config /etc/hostmesh/hostmesh.yaml', 'as systemd runs it']],
    aggregator: [['aggregator --config /etc/hostmesh/aggregator.yaml', 'as systemd runs it']],
    reload: [['reload', 'after a change of the configuration, or a new version']],
    status: [
      ['status', 'what is wrong with this host'],
      ['status --wait 60s', 'in a roll-out: wait until it is well'],
    ],
    check: [
      ['check', 'what to do next on this host'],
      ['check --pre --config /etc/hostmesh/hostmesh.yaml', 'before the first start'],
    ],
    services: [
      ['services', 'what this host knows'],
      ['services db', 'its instances, and why one is avoided'],
      ['services --fleet --host host-a', 'what runs on a host'],
    ],
    peers: [['peers --destination db -o wide', 'tunnels to db with the identity of each peer']],
    connections: [
      ['connections --source web --watch', 'what web has open, again and again'],
      ['connections --refused', 'what was refused, and why'],
    ],
    edges: [
      ['edges', 'who calls whom on this host'],
      ['edges --fleet --destination db', 'who calls db, from anywhere'],
      ['edges --fleet --window 1d -o json', 'what was seen in a day, for hostmesh simulate'],
    ],
    top: [
      ['top --fleet', 'the busiest pairs of the fleet'],
      ['top --fleet --sort errors --once', 'the worst ones, once'],
    ],
    routes: [
      ['routes', 'clusters, weights and failover of every service'],
      ['routes db', 'with the instances of each cluster'],
    ],
    intentions: [
      ['intentions db', 'who may call db on this host, and which rule decides'],
      ['intentions -o json', 'for programs'],
    ],
    certs: [['certs web', 'until when the certificate of web holds']],
    explain: [
      ['explain --from web --to db', 'why it works, or does not'],
      ['explain --connection 0-17', 'an open or refused connection'],
    ],
    ping: [
      ['ping db', 'every instance of db, and where the time goes'],
      ['ping db --from web --count 5', 'as web, five times'],
    ],
    bundle: [['bundle -o host-a.tar.gz', 'for a report to support, as root for all of it']],
    snapshot: [['snapshot -o facts.json', 'for explain --snapshot on another machine']],
    'fleet status': [['fleet status', 'the fleet in one look']],
    'fleet hosts': [
      ['fleet hosts --state silent', 'hosts that do not report'],
      ['fleet hosts host-a', 'one host'],
    ],
    'fleet versions': [['fleet versions', 'how far an upgrade is']],
    'fleet risks': [['fleet risks --severity medium -o wide', 'what to mend next, and how']],
    simulate: [
      ['simulate --intentions catalog.yaml --fleet', 'against what the aggregator has seen'],
      [
        'simulate --intentions entries.json --seen seen.json --changed',
        'offline, as in a pipeline',
      ],
    ],
    mcp: [['mcp', 'as the configuration of an agent starts it']],
    'policy propose': [
      ['policy propose --fleet > entries.yaml', 'config entries for what the aggregator has seen'],
      ['policy propose --seen seen.json -o commands', 'offline, as commands of consul'],
    ],
    'policy lint': [
      ['policy lint intentions.yaml resolvers.json', 'in the pipeline of a repository'],
    ],
    version: [['version -o json', 'for programs']],
    help: [['help ca rotate start', 'help for a nested command']],
    completion: [
      ['completion bash > /etc/bash_completion.d/hostmesh', 'for all users of this host'],
    ],
    'config validate': [['config validate /etc/hostmesh/hostmesh.yaml', 'before a reload']],
    'config show': [['config show /etc/hostmesh/hostmesh.yaml', 'with all defaults']],
    'config schema': [['config schema > hostmesh.schema.json', 'for an editor']],
    'ca init': [
      ['ca init --directory ca --trust-domain mesh.example.com', 'once, off the hosts of the mesh'],
    ],
    'ca issue': [
      [
        'ca issue --directory ca --service web --service db --out host-a',
        'for the services of a host',
      ],
    ],
    'ca show': [['ca show --directory ca', 'its root and how long it holds']],
    'ca serve': [
      [
        'ca serve --directory /var/lib/hostmesh-ca --advertise ca.example.com:15444',
        'as systemd runs it',
      ],
    ],
    'ca token': [['ca token --directory ca --host host-a', 'for the host to join with']],
    'ca status': [['ca status --directory ca', 'who has joined']],
    'ca revoke': [['ca revoke --directory ca --host host-a', 'a stolen host']],
    'ca rotate start': [['ca rotate start --directory ca', 'a new root beside the old one']],
    'ca rotate status': [['ca rotate status --directory ca --watch', 'until no host is pending']],
    'ca rotate finish': [['ca rotate finish --directory ca', 'when all hosts are done']],
    'ca rotate abort': [['ca rotate abort --directory ca', 'back to the old root']],
    'capture plan': [['capture plan --config hostmesh.yaml', 'what would be applied']],
    'capture apply': [['capture apply --config /etc/hostmesh/hostmesh.yaml', 'without the daemon']],
    'capture show': [
      [
        'capture show --config /etc/hostmesh/hostmesh.yaml',
        'whether the kernel has what it should',
      ],
    ],
    'capture clear': [['capture clear', 'after the daemon has been stopped']],
    'capture guard apply': [
      ['capture guard apply --from /var/lib/hostmesh/capture.json', 'at boot'],
    ],
    'capture guard show': [['capture guard show', 'what it has refused']],
    'capture guard clear': [['capture guard clear', 'let plaintext out again']],
    uninstall: [['uninstall --dry-run', 'see what would be removed']],
  }

/** The examples of a command as a part of its help; undefined where it has none. */
export function exampleHelp(words: string): string | undefined {
  const own = Object.hasOwn(examples, words) ? examples[words] : undefined
  if (own === undefined) return undefined
  const lines = own.map(([line, why]) => `  hostmesh ${line}\n      ${why}`)
  return `\nExamples:\n${lines.join('\n')}`
}
