package ipam

import (
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// One operation is an allocation and the release of another address, so that the
// fill stays what it is; a pod every 10 ms with a quarantine of 60 s, but no more
// than a quarter of what is free in quarantine.
//
// A /64 cannot be filled with pods. Its fill is in excluded ranges, which the
// search has to find its way around, with 1,000 pods in what is left of it.
func BenchmarkAllocateRelease(b *testing.B) {
	for _, cidr := range prefixes("10.0.0.0/24", "10.0.0.0/16", "2001:db8::/64") {
		for _, percent := range []int{0, 50, 99} {
			b.Run(fmt.Sprintf("%s/%d%%", cidr, percent), func(b *testing.B) { benchmark(b, cidr, percent) })
		}
	}
}

func benchmark(b *testing.B, cidr netip.Prefix, percent int) {
	cfg, r := Config{Quarantine: time.Minute}, Request{Family: FamilyOf(cidr.Addr())}
	var held []netip.Addr
	pods := 1000
	tick := 10 * time.Millisecond
	if r.Family == IPv4 {
		cfg.IPv4 = []netip.Prefix{cidr}
		size := 1<<(32-cidr.Bits()) - 2
		pods = size * percent / 100
		tick = max(tick, cfg.Quarantine/time.Duration((size-pods+3)/4))
	} else {
		cfg.IPv6 = []netip.Prefix{cidr}
		// 1/2, 1/4, … of the range: 50 % is one of them, seven are 99.2 %.
		for i, n := 1, map[int]int{0: 0, 50: 1, 99: 7}[percent]; i <= n; i++ {
			half := keyOf(cidr.Addr()).then(64, key{lo: 1 << (64 - i)}).addr(128)
			cfg.Exclude = append(cfg.Exclude, netip.PrefixFrom(half, 64+i))
		}
		if percent == 0 {
			pods = 0
		}
	}
	a, now := New(cfg, rand.Reader), t0
	allocate := func() netip.Addr {
		l, err := a.Allocate(r, now)
		if err != nil {
			b.Fatal(err)
		}
		now = now.Add(tick)
		return l.Addr
	}
	for range pods {
		held = append(held, allocate())
	}
	random := mrand.New(mrand.NewPCG(1, 2))
	operation := func() {
		addr := allocate()
		if len(held) > 0 {
			i := random.IntN(len(held))
			addr, held[i] = held[i], addr
		}
		a.Release(addr, "", now)
	}
	for range 100_000 { // until it is as it would be after days
		operation()
	}
	b.ReportAllocs()
	for b.Loop() {
		operation()
	}
}
