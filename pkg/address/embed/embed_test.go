package embed

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"flock.fritzlab.net/flock/pkg/api/v1alpha1"
)

// vector is a row of the table in docs/addresses.md, the one source of them.
type vector struct {
	prefix netip.Prefix
	algo   []v1alpha1.IPAlgo
	Workload
	want netip.Addr
}

func vectors(t testing.TB) []vector {
	t.Helper()
	page, err := os.ReadFile("../../../docs/addresses.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "<!-- vectors -->\n")
	table, _, end := strings.Cut(rest, "<!-- end of vectors -->")
	if !ok || !end {
		t.Fatal("docs/addresses.md: no table between the vectors marks")
	}
	var out []vector
	for _, row := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		var cells []string
		for _, c := range strings.Split(strings.Trim(row, "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(c), "`"))
		}
		if len(cells) != 6 {
			t.Fatalf("docs/addresses.md: %q has %d cells, want 6", row, len(cells))
		}
		v := vector{
			prefix:   netip.MustParsePrefix(cells[0]),
			Workload: Workload{Namespace: cells[2], App: cells[3], Image: cells[4]},
			want:     netip.MustParseAddr(cells[5]),
		}
		for _, f := range strings.Split(cells[1], ",") {
			v.algo = append(v.algo, v1alpha1.IPAlgo(f))
		}
		out = append(out, v)
	}
	return out
}

func TestVectors(t *testing.T) {
	vs := vectors(t)
	if len(vs) < 20 {
		t.Fatalf("only %d vectors in docs/addresses.md", len(vs))
	}
	for _, v := range vs {
		if got := Address(v.prefix, v.algo, v.Workload); got != v.want {
			t.Errorf("%s %v %+v: got %s, want %s", v.prefix, v.algo, v.Workload, got, v.want)
		}
	}
}

func TestShares(t *testing.T) {
	for _, tc := range []struct {
		bits, fields int
		want         []int
	}{
		{64, 3, []int{5, 5, 5}},
		{64, 2, []int{8, 7}},
		{64, 1, []int{15}},
		{48, 3, []int{7, 6, 6}},
		{48, 1, []int{19}},
		{80, 2, []int{6, 5}},
		{112, 3, []int{1, 1, 1}},
		{112, 2, []int{2, 1}},
		{65, 1, []int{14}},
		{68, 1, []int{14}},
		{120, 3, []int{1, 0, 0}},
		{121, 2, []int{0, 0}},
		{124, 1, []int{0}},
		{128, 1, []int{0}},
		{64, 0, []int{}},
	} {
		if got := Shares(tc.bits, tc.fields); !slices.Equal(got, tc.want) {
			t.Errorf("/%d, %d fields: got %v, want %v", tc.bits, tc.fields, got, tc.want)
		}
	}
}

func TestAppOf(t *testing.T) {
	yes, no := true, false
	owner := func(kind, name string, controller *bool) []metav1.OwnerReference {
		return []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, Controller: controller}}
	}
	hash := map[string]string{"pod-template-hash": "5d4f8c7b9"}
	for _, tc := range []struct {
		name   string
		labels map[string]string
		owners []metav1.OwnerReference
		want   string
	}{
		{"web-5d4f8c7b9-x2x4z", hash, owner("ReplicaSet", "web-5d4f8c7b9", &yes), "web"},
		{"a-5d4f8c7b9-5d4f8c7b9-x", hash, owner("ReplicaSet", "a-5d4f8c7b9-5d4f8c7b9", &yes), "a-5d4f8c7b9"},
		{"web-x2x4z", nil, owner("ReplicaSet", "web", &yes), "web"},                             // no Deployment above it
		{"5d4f8c7b9-x2x4z", hash, owner("ReplicaSet", "5d4f8c7b9", &yes), "5d4f8c7b9"},          // the hash is all there is
		{"web-other-x2x4z", hash, owner("ReplicaSet", "web-other", &yes), "web-other"},          // another's hash
		{"web5d4f8c7b9-x2x4z", hash, owner("ReplicaSet", "web5d4f8c7b9", &yes), "web5d4f8c7b9"}, // no dash before it
		{"db-0", nil, owner("StatefulSet", "db", &yes), "db"},
		{"log-7xk2p", nil, owner("DaemonSet", "log", &yes), "log"},
		{"backup-28391040-abcde", nil, owner("Job", "backup-28391040", &yes), "backup-28391040"},
		{"x-1", nil, owner("Workload", "of-an-operator", &yes), "of-an-operator"},
		{"alone", nil, nil, "alone"},
		{"alone", hash, nil, "alone"},
		{"owned", nil, owner("ConfigMap", "keeps-it-alive", &no), "owned"},
		{"owned", nil, owner("ConfigMap", "keeps-it-alive", nil), "owned"},
		{"etcd-node1", nil, []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "node1", Controller: &yes}}, "etcd-node1"},
		{"two", nil, append(owner("ConfigMap", "c", &no), owner("StatefulSet", "s", &yes)...), "s"},
	} {
		if got := AppOf(tc.name, tc.labels, tc.owners); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestOnlyAWholeDigestIsTakenAsSuch(t *testing.T) {
	digest := strings.Repeat("0123456789abcdef", 4)
	prefix := netip.MustParsePrefix("2001:db8::/64")
	image := func(s string) netip.Addr {
		return Address(prefix, []v1alpha1.IPAlgo{Image}, Workload{Image: s})
	}
	asSuch := netip.MustParseAddr("2001:db8::123:4567:89ab:cde0")
	for _, s := range []string{"r.example/web@sha256:" + digest, "web:1.2@sha256:" + digest} {
		if got := image(s); got != asSuch {
			t.Errorf("%s: got %s, want %s", s, got, asSuch)
		}
	}
	for _, s := range []string{"web@sha256:" + digest[1:], "web@sha256:" + strings.ToUpper(digest), "web@sha256:g" + digest[1:], "web@sha512:" + digest, "web:1.2", ""} {
		if got := image(s); got == asSuch {
			t.Errorf("%s was taken as a digest", s)
		}
	}
	inApp := Address(prefix, []v1alpha1.IPAlgo{App}, Workload{App: "web@sha256:" + digest})
	if inApp == asSuch {
		t.Error("the name of an app was taken as a digest")
	}
}

func TestReplicasDiffer(t *testing.T) {
	first := netip.MustParseAddr("2001:db8::abc0")
	seen := map[netip.Addr]bool{}
	for n := range uint32(65536) {
		a := replica(first, n)
		if back, ok := replicaOf(a, first); seen[a] || !ok || back != n {
			t.Fatalf("replica %d: %s, seen %v, back %d", n, a, seen[a], back)
		}
		seen[a] = true
	}
	for n, want := range map[uint32]string{0: "2001:db8::abc0", 15: "2001:db8::abcf", 16: "2001:db8::abd0", 0x123: "2001:db8::aae3"} {
		if got := replica(first, n); got.String() != want {
			t.Errorf("replica %d: got %s, want %s", n, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	prefix := netip.MustParsePrefix("2001:db8:100:1::/64")
	all, app := Fields, []v1alpha1.IPAlgo{App}
	pods := []Pod{
		{"shop/web-1", all, Workload{"shop", "web", "nginx:1.27"}},
		{"shop/web-2", all, Workload{"shop", "web", "nginx:1.27"}},
		{"shop/db-0", all, Workload{"shop", "db", "postgres:17"}},
		{"ops/log-x", app, Workload{"ops", "log", "vector:1"}},
		{"ops/random", nil, Workload{"ops", "random", "x"}},
	}
	web := Address(prefix, all, pods[0].Workload)
	for _, tc := range []struct {
		name string
		addr netip.Addr
		want []string // the first readings, as text
	}{
		{"a workload's pods", replica(web, 1), []string{
			"namespace 46dc5 = shop, app 5ea0e = web, image 9242d = nginx:1.27, replica 1: shop/web-1, shop/web-2",
		}},
		{"widened", replica(web, 0x21), []string{
			"namespace 46dc5 = shop, app 5ea0e = web, image 9242f changed by the replica number, replica 33: shop/web-1, shop/web-2",
		}},
		{"an image that no pod has", Address(prefix, all, Workload{"shop", "web", "gone"}), []string{
			"namespace 46dc5 = shop, app 5ea0e = web, image 9ce8f unknown, replica 0",
			"app 46dc55ea0e9ce8f unknown, replica 0",
		}},
		{"another algorithm", Address(prefix, app, Workload{App: "log"}), []string{
			"app 125073191daf543 = log, replica 0: ops/log-x",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			readings, err := Explain(tc.addr, prefix, pods)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range readings[:min(len(readings), len(tc.want))] {
				got = append(got, r.String())
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%s:\n got %q\nwant %q", tc.addr, got, tc.want)
			}
		})
	}
	for _, bad := range []string{"2001:db8:100:2::1", "10.0.0.1", "::ffff:10.0.0.1"} {
		if r, err := Explain(netip.MustParseAddr(bad), prefix, pods); err == nil {
			t.Errorf("%s: got %v", bad, r)
		}
	}
	small, err := Explain(netip.MustParseAddr("2001:db8::17"), netip.MustParsePrefix("2001:db8::/120"), pods)
	if err != nil || len(small) != 2 || small[0].Parts[len(small[0].Parts)-1].Digits != "" && len(small[0].Parts) > 1 {
		t.Errorf("in a /120: %v, %v", small, err)
	}
}

// FuzzAddress holds what is promised of every input: the address is in the prefix,
// depends on nothing but its arguments, is zero where it says so, and is read back
// as what it was made of.
func FuzzAddress(f *testing.F) {
	f.Add(uint64(0x20010db8_00000000), uint64(0), 64, byte(0b00100100), "shop", "web", "nginx:1.27", uint32(0))
	f.Add(uint64(0x20010db8_00000000), uint64(0), 65, byte(0b00010010), "", "", "x@sha256:"+strings.Repeat("ab", 32), uint32(17))
	f.Add(uint64(0), uint64(1), 128, byte(2), "a", "b", "c", uint32(4095))
	f.Fuzz(func(t *testing.T, hi, lo uint64, bits int, order byte, namespace, app, image string, number uint32) {
		var raw [16]byte
		for i := range 8 {
			raw[i], raw[8+i] = byte(hi>>(56-8*i)), byte(lo>>(56-8*i))
		}
		if bits < 0 || bits > 128 || netip.AddrFrom16(raw).Is4In6() {
			return
		}
		prefix := netip.PrefixFrom(netip.AddrFrom16(raw), bits)
		var algo []v1alpha1.IPAlgo
		for rest := order; rest > 0; rest >>= 2 {
			if f := int(rest & 3); f < 3 && !slices.Contains(algo, Fields[f]) {
				algo = append(algo, Fields[f])
			}
		}
		w := Workload{namespace, app, image}
		first := Address(prefix, algo, w)
		if !prefix.Contains(first) || first != Address(prefix.Masked(), algo, w) {
			t.Fatalf("%s is not in %s, or not the same for %s", first, prefix, prefix.Masked())
		}
		digits := digitsOf(first)
		shares, sum := Shares(bits, len(algo)), 0
		for i, s := range shares {
			if sum += s; i > 0 && (s > shares[i-1] || s < shares[0]-1) {
				t.Fatalf("shares %v of a /%d", shares, bits)
			}
		}
		if room := (128 - bits) / 4; room > 0 && (digits[31] != 0 || len(algo) > 0 && sum != room-1) {
			t.Fatalf("%s: last digit %x, %d digits shared out of %d", first, digits[31], sum, room)
		}
		if bits%4 != 0 && len(algo) > 0 {
			if same := Address(netip.PrefixFrom(prefix.Masked().Addr(), bits+4-bits%4), algo, w); same != first {
				t.Fatalf("%s: a /%d gives %s", first, bits+4-bits%4, same)
			}
		}

		// What was embedded is read back.
		if len(algo) == 0 || shares[0] == 0 {
			return
		}
		other := Pod{"other", algo, Workload{namespace + "x", app + "x", image + "x"}}
		held := replica(first, number%16)
		readings, err := Explain(held, prefix, []Pod{other, {"it", algo, w}})
		if err != nil || len(readings) != 1 || !slices.Contains(readings[0].Pods, "it") || readings[0].Replica != number%16 {
			t.Fatalf("%s in %s is read as %v, %v", held, prefix, readings, err)
		}
		for i, p := range readings[0].Parts {
			if shares[i] > 0 && !slices.Contains(p.Values, w.value(p.Field)) {
				t.Fatalf("%s: field %s is read as %v", held, p.Field, p.Values)
			}
		}
		_ = fmt.Sprint(readings[0])
	})
}

// replica is the address of replica r, counted from 0, of a workload. first is that of
// replica 0; r is put into its last bits by exclusive or.
func replica(first netip.Addr, r uint32) netip.Addr {
	b := first.As16()
	for i := range 4 {
		b[15-i] ^= byte(r >> (8 * i))
	}
	return netip.AddrFrom16(b)
}
