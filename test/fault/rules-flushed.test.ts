/**
 * What others do to the rules of nftables, while connections are open and new ones begin.
 */
import { testFlushes } from './flushed-rules.ts'

testFlushes({
  backend: 'nftables',
  events: {
    'nft flush ruleset': ['nft flush ruleset'],
    'the table that diverts is deleted': ['nft delete table inet hostmesh'],
    'the guard is deleted': ['nft delete table inet hostmesh_guard'],
    'a chain is flushed': ['nft flush chain inet hostmesh output'],
    'iptables -F of every table': [
      'iptables -F',
      'iptables -t nat -F',
      'iptables -t mangle -F',
      'iptables -t raw -F',
      'ip6tables -F',
    ],
    'the rules of routing are deleted': ['ip rule del priority 5', 'ip -6 rule del priority 5'],
    'the routes are deleted': ['ip route flush table 213', 'ip -6 route flush table 213'],
    'the route of virtual addresses is deleted': ['ip route del 240.0.0.0/4'],
    'an element is exchanged': [
      'nft add element inet hostmesh instances4 { 10.88.0.9 . 1 }',
      'nft delete element inet hostmesh instances4 { 10.88.0.2 . 5432 }',
    ],
    'a set is flushed': ['nft flush set inet hostmesh instances4'],
    'captured connections are forgotten': ['nft flush set inet hostmesh open4'],
  },
  listings: [
    'nft -s -t list table inet hostmesh',
    'nft -s -t list table inet hostmesh_guard',
    'nft list set inet hostmesh instances4',
    'nft list set inet hostmesh_guard instances4',
    'ip rule',
    'ip -6 rule',
    'ip route show table 213',
    'ip -6 route show table 213',
    'ip route show proto 213',
  ],
})
