package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

func holdings(node string, cidrs ...string) (all []Holding) {
	for _, c := range cidrs {
		text, alleged := strings.CutPrefix(c, "?")
		all = append(all, Holding{node, netip.MustParsePrefix(text), alleged})
	}
	return all
}

func TestOverlaps(t *testing.T) {
	t.Parallel()
	own := holdings("node7", "2001:db8:100:7::/64", "10.244.7.0/24")
	many := slices.Clone(own)
	for i := range 300 {
		many = append(many, holdings(fmt.Sprintf("other%03d", i), "10.244.7.0/24")...)
	}
	for _, tc := range []struct {
		name string
		all  []Holding
		want string // of node7 and node8
	}{
		{"alone", own, "[] []"},
		{"beside", slices.Concat(own, holdings("node8", "2001:db8:100:8::/64", "10.244.8.0/24")), "[] []"},
		{"nobody", nil, "[] []"},
		{"within, around and the same", slices.Concat(holdings("node9", "10.244.7.128/25", "2001:db8:100:7::/64"), own, holdings("node8", "10.244.0.0/16")),
			"[{10.244.7.0/24 10.244.0.0/16 node8} {10.244.7.0/24 10.244.7.128/25 node9} {2001:db8:100:7::/64 2001:db8:100:7::/64 node9}]" +
				" [{10.244.0.0/16 10.244.7.0/24 node7} {10.244.0.0/16 10.244.7.128/25 node9}]"},
		{"what an agent says counts for its own node", slices.Concat(own, holdings("node8", "?10.244.0.0/16")), "[] [{10.244.0.0/16 10.244.7.0/24 node7}]"},
		{"of two, both alleged", slices.Concat(holdings("node7", "?10.244.7.0/24"), holdings("node8", "?10.244.0.0/16")), "[] []"},
		{"sure and alleged by the same", slices.Concat(own, holdings("node8", "10.244.7.0/24", "?10.244.7.0/24")),
			"[{10.244.7.0/24 10.244.7.0/24 node8}] [{10.244.7.0/24 10.244.7.0/24 node7}]"},
		{"more than are said", many, "[{10.244.7.0/24 10.244.7.0/24 other000} {10.244.7.0/24 10.244.7.0/24 other001} {10.244.7.0/24 10.244.7.0/24 other002}" +
			" {10.244.7.0/24 10.244.7.0/24 other003} {10.244.7.0/24 10.244.7.0/24 other004}] []"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Overlaps(tc.all)
			var text []string
			for _, node := range []string{"node7", "node8"} {
				var of []string
				for _, o := range got[node] {
					of = append(of, fmt.Sprintf("{%s %s %s}", o.Own, o.Other, o.Node))
				}
				text = append(text, fmt.Sprint(of))
			}
			if got := strings.Join(text, " "); got != tc.want {
				t.Errorf("%s\nwant %s", got, tc.want)
			}
		})
	}
}

// TestOverlapsOfMany: the nodes that have an overlap are those that a comparison of each with
// each finds, and so are the overlaps of those that have few.
func TestOverlapsOfMany(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		var all []Holding
		for range 1 + r.IntN(40) {
			addr, bits := netip.AddrFrom4([4]byte{10, byte(r.IntN(3)), byte(r.IntN(4) * 64), byte(r.IntN(2) * 128)}), 8+r.IntN(23)
			if r.IntN(3) == 0 {
				addr, bits = netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(4))}), 48+r.IntN(73)
			}
			p, err := addr.Prefix(bits)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, Holding{fmt.Sprint("node", r.IntN(20)), p, r.IntN(4) == 0})
		}
		want := map[string]map[Overlap]bool{}
		for _, a := range all {
			for _, b := range all {
				if a.Node != b.Node && !b.Alleged && a.Prefix.Overlaps(b.Prefix) {
					if want[a.Node] == nil {
						want[a.Node] = map[Overlap]bool{}
					}
					want[a.Node][Overlap{a.Prefix, b.Prefix, b.Node}] = true
				}
			}
		}
		got := Overlaps(all)
		for node := range want {
			if len(got[node]) != min(len(want[node]), MaxOverlaps) {
				t.Errorf("seed %d: %s has %v, want %v", seed, node, got[node], slices.Collect(maps.Keys(want[node])))
			}
		}
		for node, of := range got {
			for _, o := range of {
				if !want[node][o] {
					t.Errorf("seed %d: %s has %v, want %v", seed, node, o, slices.Collect(maps.Keys(want[node])))
				}
			}
			if !slices.IsSortedFunc(of, func(a, b Overlap) int {
				return cmp.Or(a.Own.Addr().Compare(b.Own.Addr()), cmp.Compare(a.Own.Bits(), b.Own.Bits()), cmp.Compare(a.Node, b.Node))
			}) {
				t.Errorf("seed %d: %v are in no order", seed, of)
			}
		}
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if again := Overlaps(all); fmt.Sprint(again) != fmt.Sprint(got) {
			t.Errorf("seed %d: %v, and in another order %v", seed, got, again)
		}
	}
}

func TestHoldingsOf(t *testing.T) {
	t.Parallel()
	nc := &v1alpha1.NodeConfig{}
	nc.Name = "node7"
	nc.Spec.PodCIDRs = v1alpha1.PodCIDRs{IPv6: []v1alpha1.CIDR{"2001:db8:7::/64", "no CIDR"}, IPv4: []v1alpha1.CIDR{"10.7.0.0/24"}}
	nc.Status.RetiredCIDRs = []string{"10.6.0.0/24"}
	onNode := []string{"10.7.0.0/24", "no CIDR"}
	if got, want := HoldingsOf(nc, onNode), holdings("node7", "2001:db8:7::/64", "10.7.0.0/24", "?10.6.0.0/24"); !slices.Equal(got, want) {
		t.Errorf("by hand: %v, want %v", got, want)
	}
	nc.Labels = map[string]string{v1alpha1.TemplateLabel: "all"}
	if got, want := HoldingsOf(nc, onNode), holdings("node7", "10.7.0.0/24", "?2001:db8:7::/64", "?10.7.0.0/24", "?10.6.0.0/24"); !slices.Equal(got, want) {
		t.Errorf("from a template: %v, want %v", got, want)
	}
}

func BenchmarkOverlaps(b *testing.B) {
	for _, bc := range []struct {
		name string
		cidr func(i int) string
	}{
		{"none", func(i int) string { return fmt.Sprintf("10.%d.%d.0/24", i/256, i%256) }},
		{"all the same", func(int) string { return "10.0.0.0/24" }},
		{"nested", func(i int) string { return fmt.Sprintf("2001:db8::/%d", 48+i%73) }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var all []Holding
			for i := range 5000 {
				all = append(all, holdings(fmt.Sprint("node", i), bc.cidr(i), fmt.Sprintf("2001:db8:%x::/64", i+1))...)
			}
			for b.Loop() {
				Overlaps(all)
			}
		})
	}
}
