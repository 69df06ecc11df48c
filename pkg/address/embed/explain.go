package embed

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// Pod is a pod that an address may belong to.
type Pod struct {
	// Name is for people: namespace/name.
	Name string
	// Algo is what its address is made of; pods without are ignored.
	Algo []v1alpha1.IPAlgo
	Workload
}

// Reading is what an address says, if it was made of the fields of Algo.
type Reading struct {
	Algo  []v1alpha1.IPAlgo
	Parts []Part
	// Replica is the last digit; with Pods, the replica number.
	Replica uint32
	// Pods are the names of the pods of the workload that the address contains. All
	// pods of one workload match, because a replica number does not identify a pod.
	Pods []string
}

// Part is a field's share of an address.
type Part struct {
	Field v1alpha1.IPAlgo
	// Digits are the field's hexadecimal digits in the address; none where the
	// prefix leaves no room for the field.
	Digits string
	// Values are the values among the pods that have these digits: usually one,
	// none if no pod has it. Short shares can match by chance.
	Values []string
}

// Explain reads addr, from a CIDR with the given prefix, with the help of the pods
// there are. There is one Reading for each different Algo among the pods, the
// likeliest first: where a pod matches before where none does, then by how many
// digits are accounted for.
func Explain(addr netip.Addr, prefix netip.Prefix, pods []Pod) ([]Reading, error) {
	if !addr.Is6() || addr.Is4In6() || !prefix.Contains(addr) {
		return nil, fmt.Errorf("%s is no address of %s: only IPv6 addresses that came from the prefix carry a workload", addr, prefix)
	}
	var readings []Reading
	done := map[string]bool{}
	for _, p := range pods {
		if key := fmt.Sprint(p.Algo); len(p.Algo) > 0 && !done[key] {
			done[key] = true
			readings = append(readings, read(addr, prefix, p.Algo, pods))
		}
	}
	slices.SortStableFunc(readings, func(a, b Reading) int {
		return cmp.Or(cmp.Compare(min(1, len(b.Pods)), min(1, len(a.Pods))), b.known()-a.known())
	})
	return readings, nil
}

func read(addr netip.Addr, prefix netip.Prefix, algo []v1alpha1.IPAlgo, pods []Pod) Reading {
	digits := digitsOf(addr)
	r := Reading{Algo: algo, Replica: uint32(digits[31])}
	at, last := firstDigit(prefix), 0
	for i, share := range Shares(prefix.Bits(), len(algo)) {
		part := Part{Field: algo[i], Digits: hexOf(digits[at : at+share])}
		if share > 0 {
			last = share
			for _, p := range pods {
				var own [64]byte
				copy(own[:], p.digits(algo[i]))
				if hexOf(own[:share]) == part.Digits {
					part.Values = append(part.Values, p.value(algo[i]))
				}
			}
			slices.Sort(part.Values)
			part.Values = slices.Compact(part.Values)
		}
		r.Parts = append(r.Parts, part)
		at += share
	}
	// A replica number may have reached into the last field, but no further.
	// Below 16 all digits of all fields are right, which speaks for every pod that
	// has them; beyond, only the nearest first address is likely.
	limit := uint32(1) << min(4*(1+last), 12)
	nearest := limit
	for _, p := range pods {
		n, ok := replicaOf(addr, Address(prefix, algo, p.Workload))
		distance := max(n, 15)
		if !ok || !slices.Equal(p.Algo, algo) || distance >= limit || distance > nearest {
			continue
		}
		if distance < nearest {
			nearest, r.Pods = distance, nil
		}
		r.Replica, r.Pods = n, append(r.Pods, p.Name)
	}
	slices.Sort(r.Pods)
	return r
}

// replicaOf returns the replica number of addr, if it is one of the workload in which replica 0
// has the address first.
func replicaOf(addr, first netip.Addr) (uint32, bool) {
	a, f := addr.As16(), first.As16()
	if [12]byte(a[:12]) != [12]byte(f[:12]) {
		return 0, false
	}
	return binary.BigEndian.Uint32(a[12:]) ^ binary.BigEndian.Uint32(f[12:]), true
}

// known counts the digits that some pod's value accounts for.
func (r Reading) known() int {
	n := 0
	for _, p := range r.Parts {
		if len(p.Values) > 0 {
			n += len(p.Digits)
		}
	}
	return n
}

// String is the reading in one line:
//
//	namespace 7f2c1 = shop, app 0a91d = web, image 33b07 unknown, replica 2
func (r Reading) String() string {
	var out []string
	for _, p := range r.Parts {
		switch {
		case p.Digits == "":
			out = append(out, fmt.Sprintf("%s left out", p.Field))
		case len(p.Values) == 0 && len(r.Pods) == 0:
			out = append(out, fmt.Sprintf("%s %s unknown", p.Field, p.Digits))
		case len(p.Values) == 0:
			out = append(out, fmt.Sprintf("%s %s changed by the replica number", p.Field, p.Digits))
		default:
			out = append(out, fmt.Sprintf("%s %s = %s", p.Field, p.Digits, strings.Join(p.Values, " or ")))
		}
	}
	out = append(out, fmt.Sprintf("replica %d", r.Replica))
	line := strings.Join(out, ", ")
	if len(r.Pods) > 0 {
		line += ": " + strings.Join(r.Pods, ", ")
	}
	return line
}

func hexOf(digits []byte) string {
	var b strings.Builder
	for _, d := range digits {
		b.WriteByte("0123456789abcdef"[d])
	}
	return b.String()
}
