// Package nflog receives the packets that rules of nftables log to a group
// (nft(8), log group).
package nflog
