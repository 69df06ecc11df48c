package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"flock.fritzlab.net/flock/lab/cluster"
	"flock.fritzlab.net/flock/lab/member"
	"flock.fritzlab.net/flock/lab/plan"
)

// anycastThousand measures many addresses that come and go at once.
var anycastThousand = Bench{
	Name:  "anycast.thousand",
	About: fmt.Sprintf("%d addresses of one pod that go and come at once, a tenth as often", thousand),
	Run: func(ctx context.Context, l *cluster.Lab, n int) ([]Result, error) {
		g, err := newGround(ctx, l)
		if err != nil {
			return nil, err
		}
		results, err := allAtOnce(ctx, g, max(1, n/10))
		return results, errors.Join(err, g.remove(ctx))
	},
}

const thousand = 1000

func allAtOnce(ctx context.Context, g *ground, n int) (_ []Result, err error) {
	allow := func(ctx context.Context, addresses string) error {
		_, err := g.lab.Kubectl(ctx, "", "patch", "nodeconfig", anycastNode, "--type=merge", `--patch={"spec": {"maxAddressesPerPod": `+addresses+`}}`)
		return err
	}
	if err := allow(ctx, "1024"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, allow(context.WithoutCancel(ctx), "null")) }()
	seen, err := observing(ctx, observeInput{
		PodsAPI: g.podsAPI(), Namespace: anycastName, Router: member.Of(g.lab.Dir, plan.Tor).NetNS(),
	})
	if err != nil {
		return nil, err
	}
	defer seen.close()
	before, err := configured(g.lab)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for i := range thousand {
		addrs = append(addrs, anycastAddr(0, i))
	}
	began := monotonic()
	if err := g.create(ctx, "thousand", addrs...); err != nil {
		return nil, err
	}
	if _, err := seen.await(ctx, began, podPatience, marksOf(routed, true, addrs)...); err != nil {
		return nil, err
	}
	pods, err := g.list(ctx)
	if err != nil {
		return nil, err
	}
	took := map[bool][]time.Duration{}
	for range n {
		for _, ready := range []bool{false, true} {
			began := monotonic()
			if err := g.setReady(ctx, pods, ready); err != nil {
				return nil, err
			}
			publishedAt, err := seen.await(ctx, began, seenPatience, mark{published, addrs[0], ready})
			if err != nil {
				return nil, err
			}
			there, err := seen.await(ctx, began, seenPatience, marksOf(routed, ready, addrs)...)
			if err != nil {
				return nil, err
			}
			var last int64
			for _, at := range there {
				last = max(last, at)
			}
			took[ready] = append(took[ready], time.Duration(last-publishedAt[mark{published, addrs[0], ready}]))
		}
	}
	if err := notConfiguredSince(g.lab, before); err != nil {
		return nil, err
	}
	return []Result{
		{Name: fmt.Sprintf("anycast.withdraw.%d", thousand), Unit: "ms", Figures: Milliseconds(took[false])},
		{Name: fmt.Sprintf("anycast.announce.%d", thousand), Unit: "ms", Figures: Milliseconds(took[true])},
	}, nil
}
