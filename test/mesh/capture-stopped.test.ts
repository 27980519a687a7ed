/**
 * What a stopped or killed daemon leaves behind, by nftables.
 */
import { testStopped } from './stopped-daemon.ts'

testStopped('nftables')
