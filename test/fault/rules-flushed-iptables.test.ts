/**
 * What others do to the rules and sets of iptables, and to connection tracking, while connections are open and new ones
 * begin.
 */
import { testFlushes } from './flushed-rules.ts'

testFlushes({
  backend: 'iptables',
  events: {
    'iptables -F of nat': ['iptables -t nat -F', 'ip6tables -t nat -F'],
    'iptables -F of filter': ['iptables -F', 'ip6tables -F'],
    'iptables -F of every table': [
      'iptables -F',
      'iptables -t nat -F',
      'ip6tables -F',
      'ip6tables -t nat -F',
    ],
    'nft flush ruleset': ['nft flush ruleset'],
    'a chain is flushed': ['iptables -t nat -F HOSTMESH_LOCAL'],
    'a chain of the guard is flushed': ['iptables -F HOSTMESH_GUARD'],
    'what is tracked is forgotten': ['conntrack -F'],
    'what is tracked is forgotten, and nat is flushed': ['iptables -t nat -F', 'conntrack -F'],
    'all sets are flushed': ['ipset flush'],
    'all sets are flushed, and what is tracked is forgotten': ['ipset flush', 'conntrack -F'],
    'the set of instances is flushed': ['ipset flush hostmesh_instances'],
    'the set of the guard is flushed': ['ipset flush hostmesh_guarded'],
    'an element is exchanged': [
      'ipset add hostmesh_instances 10.88.0.9,tcp:1',
      'ipset del hostmesh_instances 10.88.0.2,tcp:5432',
    ],
    'the route of virtual addresses is deleted': ['ip route del 240.0.0.0/4'],
  },
  listings: [
    'iptables-save',
    'ip6tables-save',
    'ipset save hostmesh_instances',
    'ipset save hostmesh_guarded',
    'ipset save hostmesh_permitted',
    'ipset save hostmesh_intact',
    'ip route show proto 213',
  ],
})
