// Package embed makes the host bits of a pod's IPv6 address from the pod's namespace,
// workload and image. So an address in a router's log identifies the workload, and a
// prefix matches the pods of a workload.
//
// It decides which address a workload would like to have in a prefix and what an
// address says; whether the address is free is for the allocator to say (package
// ipam), which takes the free one nearest to it. It is pure, and deterministic: the
// same prefix and workload give the same address on every node and in every version.
// docs/addresses.md specifies the algorithm and publishes vectors.
package embed

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// The fields of a pod that can go into its address.
const (
	Namespace v1alpha1.IPAlgo = "namespace"
	App       v1alpha1.IPAlgo = "app"
	Image     v1alpha1.IPAlgo = "image"
)

// Fields lists them all.
var Fields = []v1alpha1.IPAlgo{Namespace, App, Image}

// Workload is the identity that an address can contain.
type Workload struct {
	// Namespace is the pod's namespace.
	Namespace string
	// App is the stable name of what the pod is a replica of: see AppOf.
	App string
	// Image is the first container's image reference as in the pod's spec.
	Image string
}

// AppOf returns the name of the workload that a pod belongs to, which stays the
// same over roll-outs and for all replicas: that of the pod's controller, for a
// ReplicaSet without the pod-template-hash that a Deployment appends. A pod without
// a controller is its own workload. So is a static pod, because its "controller" is
// its Node.
func AppOf(name string, labels map[string]string, owners []metav1.OwnerReference) string {
	for _, o := range owners {
		switch {
		case o.Controller == nil || !*o.Controller || o.Kind == "Node" && o.APIVersion == "v1":
		case o.Kind == "ReplicaSet":
			if hash := labels["pod-template-hash"]; hash != "" {
				if deployment := strings.TrimSuffix(o.Name, "-"+hash); deployment != "" {
					return deployment
				}
			}
			return o.Name
		default:
			return o.Name
		}
	}
	return name
}

// Address returns the address in prefix of a workload's first pod: that of replica
// number r differs from it by r alone, by exclusive or in its last bits. algo lists the fields,
// and must name each at most once; the prefix must be IPv6.
//
// The host bits are taken in hexadecimal digits. The last is the replica's and is
// zero here. The others are shared out evenly among the fields in order, the earlier
// ones getting what is left over; see Shares. Each field fills its share with the
// first digits of its hash, FNV-1a-64, and an image that is pinned by a sha256 digest
// with the first digits of the digest itself. What a hash is too short for stays
// zero, and so do the bits between a prefix that ends within a digit and the next.
//
// The result may be a reserved address, such as the subnet-router anycast address. The
// allocator treats those as taken.
func Address(prefix netip.Prefix, algo []v1alpha1.IPAlgo, w Workload) netip.Addr {
	digits := digitsOf(prefix.Masked().Addr())
	at := firstDigit(prefix)
	for i, share := range Shares(prefix.Bits(), len(algo)) {
		copy(digits[at:at+share], w.digits(algo[i]))
		at += share
	}
	return addrOf(digits)
}

// Shares returns how many hexadecimal digits each of n fields gets behind a prefix
// of the given length in bits: for a /64 with three fields 5, 5, 5; with two 8, 7;
// with one 15. One digit is always left for the replica.
func Shares(bits, n int) []int {
	shares := make([]int, n)
	whole := max((128-bits)/4-1, 0)
	for i := range shares {
		shares[i] = whole / n
		if i < whole%n {
			shares[i]++
		}
	}
	return shares
}

// digits returns the hexadecimal digits that stand for a field, most significant
// first: 16 of a hash or 64 of a digest, as bytes of value 0 to 15.
func (w Workload) digits(field v1alpha1.IPAlgo) []byte {
	value := w.value(field)
	if field == Image {
		if digest, ok := digestOf(value); ok {
			return nibbles(digest)
		}
	}
	h := fnv.New64a()
	h.Write([]byte(value))
	return nibbles(h.Sum(nil))
}

func (w Workload) value(field v1alpha1.IPAlgo) string {
	switch field {
	case Namespace:
		return w.Namespace
	case App:
		return w.App
	case Image:
		return w.Image
	}
	panic(fmt.Sprintf("embed: %q is no field of a pod", field)) // package annotation lets none through
}

// digestOf returns the digest in an image reference such as
// registry.example/web@sha256:<64 lower-case hexadecimal digits>.
func digestOf(image string) ([]byte, bool) {
	_, text, ok := strings.Cut(image, "@sha256:")
	if !ok || len(text) != 64 || strings.ToLower(text) != text {
		return nil, false
	}
	digest, err := hex.DecodeString(text)
	return digest, err == nil
}

// firstDigit is the index, of an address's 32 digits, of the first that is wholly
// behind the prefix.
func firstDigit(prefix netip.Prefix) int { return (prefix.Bits() + 3) / 4 }

func nibbles(b []byte) []byte {
	out := make([]byte, 0, 2*len(b))
	for _, c := range b {
		out = append(out, c>>4, c&0xf)
	}
	return out
}

func digitsOf(a netip.Addr) [32]byte {
	b := a.As16()
	return [32]byte(nibbles(b[:]))
}

func addrOf(digits [32]byte) netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = digits[2*i]<<4 | digits[2*i+1]
	}
	return netip.AddrFrom16(b)
}
