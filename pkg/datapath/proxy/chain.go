package proxy

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"flock.fritzlab.net/flock/pkg/pod"
)

// protocolName is what names of chains have for a protocol; empty for one that Services
// cannot have.
func protocolName(number byte) string {
	for name, n := range pod.Protocols {
		if n == number {
			return name
		}
	}
	return ""
}

// ownsNFT says whether kube-proxy in mode nftables made a chain for this port of this Service.
// The name is PREFIX-HASH-NAMESPACE/NAME/PROTOCOL/PORT (servicePortChainNameBase in
// kube-proxy), of which the longest that is possible fits.
func (k Key) ownsNFT(chain string) bool {
	_, rest, _ := strings.Cut(chain, "-")
	_, name, _ := strings.Cut(rest, "-")
	return name == k.Namespace+"/"+k.Name+"/"+protocolName(k.Protocol)+"/"+k.PortName
}

// ownsIPT is ownsNFT for mode iptables, where the name is KUBE-XXX- and a hash of the names
// (portProtoHash in kube-proxy).
func (k Key) ownsIPT(chain string) bool {
	name := k.Namespace + "/" + k.Name
	if k.PortName != "" {
		name += ":" + k.PortName
	}
	sum := sha256.Sum256([]byte(name + protocolName(k.Protocol)))
	return strings.HasSuffix(chain, "-"+base32.StdEncoding.EncodeToString(sum[:])[:16])
}
