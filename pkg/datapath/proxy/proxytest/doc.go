// Package proxytest writes the rules that kube-proxy writes for Services, in its modes
// nftables and iptables (Kubernetes 1.37), as input of nft(8) and iptables-restore(8), so
// that tests of a node's forwarding need no cluster. The tests in the lab use kube-proxy
// itself.
package proxytest
